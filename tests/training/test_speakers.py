"""Training on clips of several speakers: from the cache scripts to a validation that moves every voice."""

from pathlib import Path
import shutil

import pytest
import torch

from common.errors import CacheError
from dataset.config import load_dataset_config
from dataset.open import open_dataset
from precompute import ModelFiles, run
from tests.demo_clips import copy_clips, toml_text
from tests.training.runs import losses, settings, validations
from training import train
from training.clips import find_clips, read_one
from training.looking.shifted_sound import with_sound_moved
from wan.variants import find_task


@pytest.fixture(scope="module")
def duos(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Two clips with two sounds each, of 25 frames, and an entry of one clip with its own sound."""
    folder = tmp_path_factory.mktemp("duos")
    clips = root / "examples" / "demo" / "clips"
    copy_clips(root, folder / "clips", range(2))
    copy_clips(root, folder / "alone", [4])
    (folder / "others").mkdir()
    for number in range(2):
        shutil.copy(clips / f"head_{number + 2:03d}.mp4", folder / "others" / f"head_{number:03d}.mp4")
    text = toml_text(folder, frames=25)
    own = text.split("[[datasets]]")[1].replace("/clips", "/alone").replace("/cache", "/alone-cache")
    text = text.replace('audio = "clip"', f'audio_directories = ["{folder.as_posix()}/clips", '
                                          f'"{folder.as_posix()}/others"]\naudio_short = "silence"')
    data = folder / "data.toml"
    data.write_text(f"{text}[[datasets]]{own}", encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        wav2vec=weights / "wav2vec2-base-960h")
    summary = run(["latents", "text", "audio"], data, models=models)
    assert not summary.failed
    assert summary.encoded == 3 * 4 + 2 + 2, "latents, reference latents, text, audio; audio2 and regions of the two"
    assert run(["latents", "text", "audio"], data, models=models).encoded == 0
    return data


@pytest.mark.parametrize("name", ["omniavatar_add", "frame_xattn", "gated_lite"])
def test_every_design_trains_on_clips_of_one_and_of_two_speakers(name: str, duos: Path, weights: Path, tmp_path: Path
                                                                 ) -> None:
    conditions = name if name == "omniavatar_add" else f"{name},reference_channels"
    assert train(settings(duos, weights, tmp_path, network_args=[f"conditions={conditions}"], max_train_steps=3,
                          validation_count=1, validation_sigmas=[0.5]))
    assert len(losses(tmp_path)) == 3
    assert all(line["clips_compared"] == 1 for line in validations(tmp_path))


def test_the_sound_of_every_speaker_is_moved(duos: Path) -> None:
    dataset = open_dataset(load_dataset_config(duos))
    clips = find_clips(dataset, find_task("t2v-1.3B"), ("audio",), require_sources=True)
    features = read_one(clips[0]).features
    spec = next(entry.spec for entry in clips[0].entries if entry.spec.name == "audio")
    later = with_sound_moved(features, spec, 5)
    for before, after in ((features.features["audio"], later.features["audio"]), (features.voices[0], later.voices[0])):
        assert torch.equal(after["states"][:, 5:], before["states"][:, :-5])
    assert not read_one(clips[2]).features.voices


def test_a_sound_that_is_not_cached_is_refused_with_the_command(duos: Path, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(duos.parent, copy)
    data = copy / "data.toml"
    data.write_text(duos.read_text(encoding="utf-8").replace(duos.parent.as_posix(), copy.as_posix()), encoding="utf-8")
    next((copy / "cache").glob("head_001*.audio2.safetensors")).unlink()
    with pytest.raises(CacheError, match="(?s)audio2: 1 missing: head_001.mp4@0.*Run: python cache_audio_features.py"):
        train(settings(data, weights, tmp_path / "out", network_args=["conditions=omniavatar_add"]))
    train(settings(data, weights, tmp_path / "out", max_train_steps=1))
