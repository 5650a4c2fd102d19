"""Training on caches and generation from the same media show the model the same tensors."""

from collections.abc import Callable
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
import pytest
import soundfile
import torch
from torch import Tensor

from common.features import FeatureBatch
from common.tensorfile import save_tensors
from dataset.batches import LoadedBatch
from dataset.config import load_dataset_config
from dataset.open import open_dataset
from inference import load_pipeline
from inference.forward import ClipVelocity
from inference.guidance import ClassifierFree
from inference.inputs import Prepared
from inference.pipeline import Pipeline, noise_for
from inference.request import GenerationRequest
from networks.condition_weights import condition_tensors
from networks.lora_wan import create_network
from networks.metadata import Origin
from precompute import ModelFiles, run
from tests.one_clip import FPS, write_clip
from training.clips import find_clips, read_one
from training.job import with_first_frame_shown
import wan
from wan.conditions.base import Condition, ConditionState
from wan.conditions.image_latent import model_channels, model_clip_features
from wan.conditions.prepare import prepare_conditions
from wan.conditions.registry import build_condition, find_condition
from wan.variants import find_task

FRAMES = 9
SOURCE_FRAMES = 12
"""The clip is the start of its source, so that there is sound after it."""
CAPTION = "a person speaks to the camera"
TOML = """
[[datasets]]
resolution = [48, 32]
caption_extension = ".txt"
video_directory = "{folder}/clips"
audio_directory = "{folder}/sounds"
cache_directory = "{folder}/cache"
target_fps = 25
target_frames = [9]
"""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 9 frames that is no multiple of the bucket, its sound, its first frame as a picture; and the TOML."""
    folder = tmp_path_factory.mktemp("one_path")
    write_clip(folder, frames=SOURCE_FRAMES, channels=2, seed=2, caption=CAPTION)
    (folder / "data.toml").write_text(TOML.format(folder=folder.as_posix()), encoding="utf-8")
    return folder


def adapter(path: Path, weights: Path, family: str, conditions: dict[str, Condition] | None = None) -> Path:
    """A LoRA file that says how it was trained, with `conditions` beside the LoRA."""
    network = create_network(wan.load_dit(weights / f"wan2.1_{family}_tiny.safetensors"), dim=2, alpha=2.0)
    origin = Origin(conditions={name: one.settings_text() for name, one in (conditions or {}).items()}, fps=float(FPS),
                    picture_mode="cover")
    save_tensors(path, network.state() | condition_tensors(conditions or {}), origin.text())
    return path


def cached(media: Path, weights: Path, features: list[str], task: str, more: tuple[str, ...] = ()) -> LoadedBatch:
    """The clip as training reads it from the cache."""
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        clip=weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
                        wav2vec=weights / "wav2vec2-base-960h", t5_dtype="float32")
    assert not run(features, media / "data.toml", models=models).failed
    dataset = open_dataset(load_dataset_config(media / "data.toml"))
    [clip] = find_clips(dataset, find_task(task), more, require_sources=True)
    return read_one(clip)


def generated(media: Path, weights: Path, family: str, **settings: Any) -> tuple[Pipeline, Prepared]:
    """The same media as generation encodes them."""
    request = GenerationRequest(
        dit=weights / f"wan2.1_{family}_tiny.safetensors", vae=weights / "Wan2.1_VAE.pth", device="cpu",
        t5=weights / "models_t5_umt5-xxl-enc-bf16.pth", t5_dtype="float32", prompt=CAPTION, video_size=(32, 48),
        image_path=media / "first.png", seed=1, **settings)
    pipeline = load_pipeline(request)
    return pipeline, pipeline.prepare(pipeline.plan(request))


def assert_same_features(ours: FeatureBatch, theirs: FeatureBatch, names: tuple[str, ...]) -> None:
    for name in names:
        assert ours.features[name].keys() == theirs.features[name].keys()
        for key, tensor in ours.features[name].items():
            torch.testing.assert_close(tensor, theirs.features[name][key], rtol=0, atol=0, msg=f"{name}.{key} differs")
    assert (ours.frames, ours.fps) == (theirs.frames, theirs.fps)


def test_a_talking_clip_is_shown_alike(media: Path, tiny_weights: Path) -> None:
    batch = cached(media, tiny_weights, ["latents", "text", "audio"], "t2v-1.3B", ("audio", "reference_latents"))
    states, width = batch.features.features["audio"]["states"].shape[-2:]
    variant = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors").variant
    condition = build_condition("omniavatar_add", {"audio_states": str(states), "audio_width": str(width)}, variant)
    draws = torch.Generator().manual_seed(5)
    for parameter in condition.parameters():
        parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=draws))
    lora = adapter(media / "talking.safetensors", tiny_weights, "t2v", {"omniavatar_add": condition})
    pipeline, prepared = generated(media, tiny_weights, "t2v", lora_weight=[lora], video_length=FRAMES,
                                   audio=media / "sounds" / "head.wav", wav2vec=tiny_weights / "wav2vec2-base-960h")

    latents = batch.latents.float()
    shown = with_first_frame_shown(batch.features, latents, batch.items)
    assert_same_features(shown, prepared.batch, ("audio", "reference_latents"))
    assert torch.equal(shown.features["text"]["hidden"][0], prepared.text)
    assert torch.equal(not_none(shown.first_is_still), not_none(prepared.batch.first_is_still))

    trained = prepare_conditions({"omniavatar_add": condition}, shown, tuple(latents.shape[2:]))["omniavatar_add"]
    velocity = ClipVelocity(pipeline.models.get("dit"), pipeline.models.get("conditions"), prepared,
                            ClassifierFree(1.0), noise_for(prepared.plan))
    used = velocity.passes["conditional"].states["omniavatar_add"]
    assert_same_states(trained, used)
    silent = condition.audio_proj(torch.zeros(1, FRAMES, condition.frame_width))[:, 0]  # type: ignore[operator]
    heard = condition.audio_proj(vectors(shown))  # type: ignore[operator]
    assert not torch.equal(heard[:, 0], silent), "row 0 of the cache holds sound"
    projected = torch.stack([project(silent) for project in condition.audio_cond_projs], dim=1)  # type: ignore
    torch.testing.assert_close(trained.residuals[:, :, 0], projected)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["frame_xattn", "gated_lite"])
def test_a_condition_that_hears_beside_the_clip_is_shown_alike(name: str, media: Path, tiny_weights: Path) -> None:
    batch = cached(media, tiny_weights, ["latents", "text", "audio"], "t2v-1.3B", ("audio", "reference_latents"))
    variant = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors").variant
    settings = find_condition(name).settings_from_features(batch.features.features)
    conditions = {name: build_condition(name, settings, variant),
                  "reference_channels": build_condition("reference_channels", {}, variant)}
    lora = adapter(media / f"{name}.safetensors", tiny_weights, "t2v", conditions)
    pipeline, prepared = generated(media, tiny_weights, "t2v", lora_weight=[lora], video_length=FRAMES,
                                   audio=media / "sounds" / "head.wav", wav2vec=tiny_weights / "wav2vec2-base-960h")
    latents = batch.latents.float()
    shown = with_first_frame_shown(batch.features, latents, batch.items)
    assert_same_features(shown, prepared.batch, ("audio", "reference_latents"))
    audio = batch.features.features["audio"]
    assert torch.equal(audio["before"], audio["states"][:, :1].expand_as(audio["before"])), "the sound begins here"
    assert not torch.equal(audio["after"], audio["states"][:, -1:].expand_as(audio["after"])), "the sound goes on"

    size = tuple(latents.shape[2:])
    trained = prepare_conditions(conditions, shown, size)
    used = prepare_conditions(pipeline.models.get("conditions"), prepared.batch, size)
    assert trained.keys() == used.keys() == conditions.keys()
    for ours, theirs in zip(trained[name].sound, used[name].sound, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(ours, theirs)
    ours, theirs = trained["reference_channels"], used["reference_channels"]
    assert torch.equal(ours.channels, theirs.channels)  # type: ignore[attr-defined]
    assert torch.equal(not_none(ours.given).mask, not_none(theirs.given).mask)


@pytest.mark.parametrize("place", ["side by side", "boxes", "masks"])
@pytest.mark.parametrize("name", ["omniavatar_add", "frame_xattn", "gated_lite"])
def test_two_speakers_are_shown_alike(place: str, name: str, media: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """Voices and regions of the cache are those of a generation, bit by bit, and so is what a design reads of them."""
    sounds, row, asked = two_speakers(media, tmp_path, place)
    (tmp_path / "list.jsonl").write_text(json.dumps({
        "video_path": str(media / "clips" / "head.mp4"), "caption": CAPTION, "audio_paths": list(map(str, sounds)),
        **row}), encoding="utf-8")
    (tmp_path / "data.toml").write_text(
        TOML.format(folder=tmp_path.as_posix()).replace("video_directory", "video_jsonl_file").replace(
            "/clips", "/list.jsonl").replace("audio_directory", "# "), encoding="utf-8")
    batch = cached(tmp_path, tiny_weights, ["latents", "text", "audio"], "t2v-1.3B", ("audio", "reference_latents"))
    variant = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors").variant
    found = find_condition(name).settings_from_features(batch.features.features)
    conditions = {name: build_condition(name, found, variant)}
    if name != "omniavatar_add":
        conditions["reference_channels"] = build_condition("reference_channels", {}, variant)
    lora = adapter(tmp_path / "two.safetensors", tiny_weights, "t2v", conditions)
    _, prepared = generated(media, tiny_weights, "t2v", lora_weight=[lora], video_length=FRAMES, audio=sounds[0],
                            audio2=sounds[1:], wav2vec=tiny_weights / "wav2vec2-base-960h", **asked)
    latents = batch.latents.float()
    shown = with_first_frame_shown(batch.features, latents, batch.items)
    assert_same_features(shown, prepared.batch, ("audio", "reference_latents"))
    [ours], [theirs] = shown.voices, prepared.batch.voices
    assert ours.keys() == theirs.keys() == shown.features["audio"].keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not torch.equal(ours["states"], shown.features["audio"]["states"])
    assert torch.equal(not_none(shown.regions), not_none(prepared.batch.regions))
    assert 0 < not_none(shown.regions).mean() < 1
    grid = (latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2)
    trained, used = (conditions[name].voices(one, grid) for one in (shown, prepared.batch))  # type: ignore[operator]
    assert len(trained.rows) == len(used.rows) == 2 and torch.equal(trained.shares, used.shares)
    assert all(torch.equal(one, other) for one, other in zip(trained.rows, used.rows, strict=True))
    prepare_conditions(conditions, shown, tuple(latents.shape[2:]))


def two_speakers(media: Path, folder: Path, place: str) -> tuple[list[Path], dict[str, Any], dict[str, Any]]:
    """The sounds of two, where they are as a list's line says it, and as a request does."""
    second = folder / "second.wav"
    noise = 0.2 * np.random.default_rng(8).standard_normal(SOURCE_FRAMES * 16_000 // FPS)
    soundfile.write(second, noise, 16_000, subtype="FLOAT")
    sounds = [media / "sounds" / "head.wav", second]
    if place == "boxes":
        boxes = ["0,0.1,0.45,1", "0.6,0,1,0.8"]
        return sounds, {"speaker_boxes": boxes}, {"speaker_boxes": boxes}
    if place == "masks":
        paths = [folder / f"mask{number}.png" for number in range(2)]
        for number, path in enumerate(paths):
            mask = np.zeros((70, 100), np.uint8)
            mask[10:50, 55 * number:55 * number + 37] = 255 - 60 * number
            Image.fromarray(mask).save(path)
        return sounds, {"speaker_mask_paths": list(map(str, paths))}, {"speaker_masks": paths}
    return sounds, {}, {}


def assert_same_states(ours: ConditionState, theirs: ConditionState) -> None:
    """Audio residuals, reference and mask channels bit by bit; the given latent but for the rounding of the VAE."""
    for name in ("residuals", "channels"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    given, used = not_none(ours.given), not_none(theirs.given)
    assert torch.equal(given.mask, used.mask) and given.mask[:, 0, :, 0, 0].tolist() == [[1, 0, 0]]
    torch.testing.assert_close(given.latents, used.latents, rtol=1e-5, atol=1e-5)
    assert given.mode == used.mode == "clean_same_t"


def vectors(batch: FeatureBatch) -> Tensor:
    states = batch.features["audio"]["states"]
    return torch.cat((states[:, :, -1:], states), dim=2).flatten(2)


def not_none(value: Any) -> Any:
    assert value is not None
    return value


def test_an_image_to_video_clip_is_shown_alike(media: Path, tiny_weights: Path) -> None:
    batch = cached(media, tiny_weights, ["latents", "text", "image_latents", "clip"], "i2v-14B")
    lora = adapter(media / "i2v.safetensors", tiny_weights, "i2v")
    pipeline, prepared = generated(
        media, tiny_weights, "i2v", lora_weight=[lora], video_length=FRAMES,
        clip=tiny_weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    assert_same_features(batch.features, prepared.batch, ("image_latents", "clip"))
    variant = pipeline.files.variant
    build: list[Callable[..., Tensor | None]] = [model_channels, model_clip_features]
    for make in build:
        assert torch.equal(not_none(make(variant, batch.features)), not_none(make(variant, prepared.batch)))
