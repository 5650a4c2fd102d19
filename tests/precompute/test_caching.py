"""The cache scripts: what is fresh is skipped, what changed is encoded again, and nothing else."""

from dataclasses import replace
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import torch

from common.errors import ConfigError, WeightsError
from common.tensorfile import load_tensors
from precompute import ModelFiles, run
from precompute.caching import exit_code
from tests.demo_clips import write_toml

FEATURES = ("latents", "text", "audio")


@pytest.fixture
def models(tiny_weights: Path, tmp_path: Path) -> ModelFiles:
    """Copies of the encoders, so that a test may change them."""
    weights = tmp_path / "weights"
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        weights.mkdir(exist_ok=True)
        shutil.copy(tiny_weights / name, weights / name)
    shutil.copytree(tiny_weights / "google", weights / "google")
    shutil.copytree(tiny_weights / "wav2vec2-base-960h", weights / "wav2vec2-base-960h")
    return ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                      wav2vec=weights / "wav2vec2-base-960h")


def cache(data: Path, models: ModelFiles, *features: str) -> tuple[int, int, int]:
    """(encoded, of these stale, fresh) of one run over the given features, or all."""
    summary = run(features or FEATURES, data / "data.toml", models=models)
    assert exit_code(summary) == 0, summary.failed
    return summary.encoded, summary.stale, summary.fresh


def test_second_run_encodes_nothing_and_loads_no_model(data: Path, models: ModelFiles, monkeypatch: pytest.MonkeyPatch
                                                       ) -> None:
    assert cache(data, models) == (8, 0, 0)  # two clips: latents, reference latents, text, audio
    for loader in ("load_vae", "load_text_encoder", "load_audio_encoder"):
        monkeypatch.setattr(f"wan.{loader}", None, raising=False)
    assert cache(data, models) == (0, 0, 8)


def test_changed_caption_re_encodes_that_caption_only(data: Path, models: ModelFiles) -> None:
    cache(data, models)
    (data / "clips" / "head_001.txt").write_text("Another caption.")
    assert cache(data, models) == (1, 1, 7)


def test_changed_clip_re_encodes_its_pictures_and_sound_only(data: Path, models: ModelFiles, root: Path) -> None:
    cache(data, models)
    shutil.copy(root / "examples" / "demo" / "clips" / "head_002.mp4", data / "clips" / "head_001.mp4")
    assert cache(data, models) == (3, 3, 5)


def test_touched_but_equal_clip_stays_fresh(data: Path, models: ModelFiles) -> None:
    cache(data, models)
    os.utime(data / "clips" / "head_001.mp4", (1, 1))
    assert cache(data, models) == (0, 0, 8)


def test_captions_in_float8_are_remembered_as_such(data: Path, models: ModelFiles) -> None:
    assert cache(data, models, "text") == (2, 0, 0)
    small = replace(models, fp8_t5=True)
    assert cache(data, small, "text") == (2, 2, 0)
    assert cache(data, small, "text") == (0, 0, 2)
    assert cache(data, models, "text") == (2, 2, 0)


def test_another_null_text_makes_the_captions_again_and_nothing_else(data: Path, models: ModelFiles) -> None:
    cache(data, models)
    paths = sorted((data / "cache").glob("*.text.safetensors"))
    before = [load_tensors(path) for path in paths]
    assert all(tensors.keys() == {"hidden", "null"} for tensors, _ in before)
    assert all(header["option.null"].startswith("empty ") for _, header in before)
    assert cache(data, replace(models, null_text="negative")) == (2, 2, 6)
    for (old, _), (new, header) in zip(before, map(load_tensors, paths), strict=True):
        assert torch.equal(old["hidden"], new["hidden"]) and len(new["null"]) > len(old["null"])
        assert header["option.null"].startswith("negative ")


def test_changed_size_makes_new_pictures_and_keeps_text_and_sound(data: Path, models: ModelFiles) -> None:
    cache(data, models)
    write_toml(data, size=48)
    assert cache(data, models) == (4, 0, 4)


def test_changed_fps_re_encodes_pictures_and_sound(data: Path, models: ModelFiles) -> None:
    cache(data, models)
    write_toml(data, fps=20)
    assert cache(data, models) == (6, 6, 2)


def test_encoder_with_other_values_re_encodes_its_features(data: Path, models: ModelFiles) -> None:
    cache(data, models)
    assert models.t5 is not None
    state = torch.load(models.t5, weights_only=True)
    name = next(key for key in state if key.endswith("attn.q.weight"))
    state[name] = state[name] + 1
    torch.save(state, models.t5)
    assert cache(data, models) == (2, 2, 6)


def test_dataset_copied_elsewhere_or_without_its_media_is_fresh(data: Path, models: ModelFiles, tmp_path: Path) -> None:
    cache(data, models)
    copy = tmp_path / "elsewhere"
    for part in ("clips", "cache"):
        shutil.copytree(data / part, copy / part)
    write_toml(copy)
    assert cache(copy, models) == (0, 0, 8)
    for clip in (copy / "clips").iterdir():
        clip.unlink()
    summary = run(FEATURES, copy / "data.toml", models=models)
    assert (summary.encoded, summary.fresh + summary.unchecked, summary.failed) == (0, 8, [])


def test_broken_clip_costs_only_itself_and_the_exit_code(data: Path, models: ModelFiles) -> None:
    clip = data / "clips" / "head_001.mp4"
    clip.write_bytes(clip.read_bytes()[:2000])
    summary = run(("latents",), data / "data.toml", models=models)
    assert summary.encoded == 2
    assert exit_code(summary) == 1
    assert len(summary.failed) == 1
    assert "head_001" in summary.failed[0]


def test_unknown_feature_and_missing_weights_are_told_together(data: Path) -> None:
    with pytest.raises(ConfigError, match="(?s)unknown feature 'audi'.*nearest: 'audio'.*--vae is needed for latents"):
        run(("latents", "audi"), data / "data.toml", models=ModelFiles())


def test_wrong_weights_stop_the_run(data: Path, models: ModelFiles, tiny_weights: Path) -> None:
    wrong = ModelFiles(vae=tiny_weights / "wan2.1_t2v_tiny.safetensors")
    with pytest.raises(WeightsError):
        run(("latents",), data / "data.toml", models=wrong)


def test_wrong_weights_leave_a_finished_cache_as_it_was(data: Path, models: ModelFiles, tiny_weights: Path) -> None:
    cache(data, models, "latents")
    before = {path.name: path.read_bytes() for path in (data / "cache").iterdir()}
    with pytest.raises(WeightsError):
        run(("latents",), data / "data.toml", models=ModelFiles(vae=tiny_weights / "wan2.1_t2v_tiny.safetensors"))
    assert {path.name: path.read_bytes() for path in (data / "cache").iterdir()} == before


@pytest.mark.slow
def test_two_processes_make_the_entries_of_one(data: Path, models: ModelFiles, root: Path, tmp_path: Path) -> None:
    cache(data, models, "latents")
    alone = {path.name: load_tensors(path) for path in (data / "cache").glob("*latents.safetensors")}
    shutil.rmtree(data / "cache")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"]
    command = [*launch, "cache_latents.py", "--dataset_config", str(data / "data.toml"), "--vae", str(models.vae)]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "4 encoded, 0 fresh" in result.stderr
    together = {path.name: load_tensors(path) for path in (data / "cache").glob("*latents.safetensors")}
    assert together.keys() == alone.keys()
    for name, (tensors, header) in together.items():
        assert header == alone[name][1]
        # The launcher gives each process one thread, and convolutions sum in another order then.
        torch.testing.assert_close(tensors, alone[name][0], atol=1e-5, rtol=0)
    assert not list((data / "cache").glob(".*tmp*"))


def test_pruning_spares_the_entries_of_a_source_that_cannot_be_read_just_now(data: Path, models: ModelFiles) -> None:
    cache(data, models, "latents")
    before = {path.name for path in (data / "cache").glob("*.safetensors")}
    clip = data / "clips" / "head_001.mp4"
    whole = clip.read_bytes()
    clip.write_bytes(b"half a download")
    summary = run(["latents"], data / "data.toml", models=models, prune=True)
    assert summary.failed and {path.name for path in (data / "cache").glob("*.safetensors")} == before
    clip.write_bytes(whole)
    assert cache(data, models, "latents") == (0, 0, 4)
    clip.unlink()
    clip.with_suffix(".txt").unlink()
    assert not run(["latents"], data / "data.toml", models=models, prune=True).failed
    assert {name for name in before if name.startswith("head_000")} == {
        path.name for path in (data / "cache").glob("*.safetensors")}
