"""A clip of one full chunk, cached with `--audio_padding chunk`, and its generation show the model the same tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.tensorfile import load_tensors, save_tensors
from dataset.batches import LoadedBatch
from dataset.config import load_dataset_config
from dataset.open import open_dataset
from networks.condition_weights import condition_tensors
from networks.lora_wan import create_network
from networks.metadata import Origin
from precompute import ModelFiles, run
from precompute.models import AudioOptions
from tests.one_clip import FPS, write_clip
from tests.test_one_data_path import CAPTION, assert_same_features, generated, not_none
from training.clips import find_clips, read_one
from training.job import with_first_frame_shown
import wan
from wan.audio_presets import find_preset
from wan.conditions.base import Condition
from wan.conditions.prepare import prepare_conditions
from wan.conditions.registry import build_condition, find_condition
from wan.encoders.features.audio import ChunkPadding
from wan.variants import find_task

CHUNK, OVERLAP = 9, 5
TOML = """
[[datasets]]
resolution = [48, 32]
caption_extension = ".txt"
video_directory = "{folder}/clips"
audio_directory = "{folder}/sounds"
cache_directory = "{folder}/cache-{preset}"
target_fps = 25
target_frames = [9]
"""
DESIGNS = {"omniavatar_add": ("omniavatar_add",), "frame_xattn": ("frame_xattn", "reference_channels"),
           "gated_lite": ("gated_lite", "reference_channels")}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of one chunk with exactly its sound, and its first frame as a picture."""
    folder = tmp_path_factory.mktemp("one_chunk")
    write_clip(folder, frames=CHUNK, channels=1, seed=4, caption=CAPTION)
    return folder


def cached(media: Path, weights: Path, preset: str, scope: Any) -> tuple[LoadedBatch, dict[str, str]]:
    """The clip as training reads it, and how its sound was encoded."""
    data = media / f"{preset}-{scope}.toml"
    data.write_text(TOML.format(folder=media.as_posix(), preset=f"{preset}-{scope}"), encoding="utf-8")
    audio = AudioOptions(find_preset(preset), scope, ChunkPadding(CHUNK, overlap=OVERLAP), more=("silence",))
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        wav2vec=weights / "wav2vec2-base-960h", t5_dtype="float32", audio=audio)
    assert not run(["latents", "text", "audio"], data, models=models).failed
    [clip] = find_clips(open_dataset(load_dataset_config(data)), find_task("t2v-1.3B"),
                        ("audio", "reference_latents"), require_sources=True)
    entry = next(entry for entry in clip.entries if entry.spec.name == "audio")
    header = load_tensors(not_none(entry.path))[1]
    return read_one(clip), {key.removeprefix("option."): value for key, value in header.items()
                            if key.startswith("option.")}


def trained_file(path: Path, weights: Path, conditions: dict[str, Condition], options: dict[str, str]) -> Path:
    """A network file that says how the sound of its training was heard."""
    network = create_network(wan.load_dit(weights / "wan2.1_t2v_tiny.safetensors"), dim=2, alpha=2.0)
    origin = Origin(conditions={name: one.settings_text() for name, one in conditions.items()}, fps=float(FPS),
                    picture_mode="cover", encoders={"audio": {"options": options}})
    save_tensors(path, network.state() | condition_tensors(conditions), origin.text())
    return path


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("preset", "scope"), [("omniavatar", "clip"), ("omniavatar", "file"), ("multitalk", "clip")])
def test_one_full_chunk_is_shown_alike(design: str, preset: str, scope: str, media: Path, tiny_weights: Path) -> None:
    loaded, options = cached(media, tiny_weights, preset, scope)
    assert options["padding"] == "full chunks of 9 frames, overlap 5"
    variant = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors").variant
    conditions = {}
    for name in DESIGNS[design]:
        settings = find_condition(name).settings_from_features(loaded.features.features, {"audio": options})
        settings |= {"null": "silence"} if name == design else {}
        conditions[name] = build_condition(name, settings, variant)
        torch.manual_seed(6)
        for parameter in conditions[name].parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    lora = trained_file(media / f"{design}-{preset}-{scope}.safetensors", tiny_weights, conditions, options)
    pipeline, prepared = generated(media, tiny_weights, "t2v", lora_weight=[lora], chunk_frames=CHUNK,
                                   overlap_frame=OVERLAP, audio=media / "sounds" / "head.wav",
                                   wav2vec=tiny_weights / "wav2vec2-base-960h")
    assert pipeline.files.preset.name == preset
    assert len(prepared.plan.segments) == 1 and prepared.plan.rows_heard(CHUNK) == 12

    latents = loaded.latents.float()
    shown = with_first_frame_shown(loaded.features, latents, loaded.items)
    assert_same_features(with_edges(shown), prepared.batch, ("audio", "reference_latents"))
    trained = prepare_conditions(conditions, shown, tuple(latents.shape[2:]))
    used = prepare_conditions(pipeline.models.get("conditions"), prepared.batch, tuple(latents.shape[2:]))
    assert trained.keys() == used.keys() == set(DESIGNS[design])
    ours: Any
    for name, ours in trained.items():
        theirs: Any = used[name]
        assert_same_sound(design, ours, theirs, is_sound=name == design)
        if ours.given is not None:
            assert torch.equal(ours.channels, theirs.channels)
            assert torch.equal(ours.given.mask, theirs.given.mask) and ours.given.mode == theirs.given.mode
            torch.testing.assert_close(ours.given.latents, theirs.given.latents, rtol=1e-5, atol=1e-5)


def assert_same_sound(design: str, ours: Any, theirs: Any, *, is_sound: bool) -> None:
    """What is made of the windows of sound, bit by bit."""
    if not is_sound:
        return
    if design == "omniavatar_add":
        assert torch.equal(ours.residuals, theirs.residuals)
        return
    assert len(ours.sound) == len(theirs.sound) > 0
    assert all(torch.equal(one, other) for one, other in zip(ours.sound, theirs.sound, strict=True))


def with_edges(batch: Any) -> Any:
    """A clip that was heard alone has no rows beside it in the cache; a generation writes its edge rows there."""
    from dataclasses import replace

    audio = dict(batch.features["audio"])
    if "before" not in audio:
        states = audio["states"]
        audio |= {"before": states[:, :1].expand(-1, 2, -1, -1), "after": states[:, -1:].expand(-1, 2, -1, -1)}
    return replace(batch, features={**batch.features, "audio": audio})
