"""Whole runs with prefixes, dropouts, budgets and random lengths: what they record, and what is refused beforehand."""

from collections.abc import Callable
import json
import logging
from pathlib import Path
import shutil
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch

from common.errors import CacheError, ConfigError
from common.tensorfile import load_tensors, save_tensors
from networks.metadata import Origin
from tests.demo_clips import write_toml
from tests.training.runs import CLIPS, losses, settings
from training import train
from training.build import assemble
from training.preflight import check
from wan.encoders.features.text import NULL_TEXTS
from wan.encoders.vae import load_vae

HEARING = ["conditions=omniavatar_add"]


def told_by(final: Path | None) -> Origin:
    with safe_open(final or "", "pt") as file:
        origin = Origin.read(file.metadata())
    assert origin is not None
    return origin


@pytest.fixture
def old_cache(talking: Path, tmp_path: Path) -> Path:
    """The dataset with its captions as a version before null texts cached them."""
    folder = tmp_path / "old"
    shutil.copytree(talking.parent, folder)
    index = folder / "cache" / "omnituner-index.json"
    data = json.loads(index.read_text(encoding="utf-8"))
    text = data["features"]["text"]
    text["spec"]["tensors"] = [one for one in text["spec"]["tensors"] if one["name"] != "null"]
    del text["options"]["null"]
    index.write_text(json.dumps(data), encoding="utf-8")
    for path in (folder / "cache").glob("*.text.safetensors"):
        tensors, header = load_tensors(path)
        del tensors["null"], header["option.null"]
        save_tensors(path, tensors, header)
    return write_toml(folder, "batch1.toml")


def test_a_run_says_how_its_clips_were_shown(talking: Path, weights: Path, tmp_path: Path) -> None:
    final = train(settings(talking, weights, tmp_path, network_args=[*HEARING, "omniavatar_add.given=noised"],
                           prefix_frames=[1, 5], prefix_weights=[3, 1], audio_dropout=0.2, max_train_steps=2))
    origin = told_by(final)
    shown = dict(origin.showing)
    assert shown.pop("null_text").startswith("empty ") and NULL_TEXTS["empty"] == ""
    assert shown == {"prefix_frames": [1, 5], "prefix_weights": [3.0, 1.0], "prefix_dropout": 0.1,
                     "prefix_corruption": 0.0, "audio_dropout": 0.2, "text_dropout": 0.1, "audio_text_dropout": 0.05,
                     "reference_dropout": 0.0, "null_audio": {"omniavatar_add": "zeros"}}
    assert origin.conditions["omniavatar_add"]["given"] == "noised"


def test_a_plain_lora_trains_as_it_did_from_old_caches(old_cache: Path, talking: Path, weights: Path, tmp_path: Path
                                                      ) -> None:
    final = [train(settings(data, weights, tmp_path / name)) for name, data in (("old", old_cache), ("new", talking))]
    old, new = (load_file(path or "") for path in final)
    assert all(torch.equal(old[key], new[key]) for key in new)
    assert told_by(final[0]).showing["text_dropout"] == 0


def test_captions_are_not_dropped_from_an_old_cache(old_cache: Path, weights: Path, tmp_path: Path) -> None:
    """Refused before weights are read, with the command; without text dropouts the cache will do."""
    with pytest.raises(CacheError, match=r"holds no tensor 'null' .* python cache_text_encoder_outputs.py "
                                         r"--dataset_config") as caught:
        train(settings(old_cache, weights, tmp_path / "a", network_args=HEARING))
    assert str(old_cache) in str(caught.value)
    train(settings(old_cache, weights, tmp_path / "b", network_args=HEARING, text_dropout=0.0, audio_text_dropout=0.0))
    assert len(losses(tmp_path / "b")) == 5


@pytest.mark.parametrize(("flags", "words"), [
    ({"network_args": [], "audio_dropout": 0.1}, "needs a condition that hears"),
    ({"network_args": [], "prefix_frames": [5]}, "needs a condition that starts from a picture"),
    ({"network_args": HEARING, "reference_dropout": 0.1}, "never lacks its reference"),
    ({"network_args": HEARING, "audio_dropout": 0.9, "text_dropout": 0.2}, "can be 1 at most"),
    ({"network_args": HEARING, "prefix_frames": [9]}, "head_000.mp4@0, .*would have no frame left to learn"),
    ({"network_args": HEARING, "prefix_frames": [5], "random_length": True, "min_frames": 5}, "no frame left to learn"),
    ({"network_args": HEARING, "prefix_frames": [5], "random_length": True, "min_frames": 1}, "no frame left to learn"),
    ({"network_args": HEARING, "prefix_frames": [1], "prefix_corruption": 0.3}, "one frame alone is given"),
    ({"network_args": ["conditions=reference_channels"], "prefix_corruption": 0.3}, "one frame alone is given"),
    ({"network_args": [*HEARING, "omniavatar_add.null=silence"]}, "null=silence.*--audio_silence"),
    ({"network_args": [*HEARING, "omniavatar_add.given=clean"]}, "Use clean_same_t .*, t0 .* or noised"),
    ({"max_tokens": 3}, r"not even one latent frame of head_000\.mp4@0 \(4 tokens"),
])
def test_what_cannot_be_shown_is_refused_before_models_load(flags: dict[str, Any], words: str, talking: Path,
                                                           weights: Path, tmp_path: Path) -> None:
    from common.errors import UserError

    with pytest.raises(UserError, match=words):
        check(settings(talking, weights, tmp_path, **flags))


def test_a_model_with_a_last_frame_is_not_cut(talking: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--task flf2v-14B is given its last frame"):
        check(settings(talking, weights, tmp_path, task="flf2v-14B", random_length=True,
                       dit=weights / "wan2.1_flf2v_tiny.safetensors"))


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, int]]]:
    """Function that trains and returns (samples, latent frames) of every batch."""
    def of(config: Any) -> list[tuple[int, int]]:
        import training.build as hall

        seen: list[tuple[int, int]] = []

        def watched(*args: Any, **named: Any) -> Any:
            run = assemble(*args, **named)
            loss = run.loop.job.loss

            def told(batch: Any) -> Any:
                assert batch.features.frames == 4 * batch.latents.shape[2] - 3
                assert batch.features.features["audio"]["states"].shape[1] == batch.features.frames
                seen.append((len(batch.latents), batch.latents.shape[2]))
                return loss(batch)

            run.loop.job.loss = told  # type: ignore[method-assign]
            return run

        monkeypatch.setattr(hall, "assemble", watched)
        assert hall.train(config) is not None
        return seen

    return of


def test_no_batch_is_above_the_budget(talking: Path, weights: Path, tmp_path: Path,
                                      shapes: Callable[..., list[tuple[int, int]]],
                                      caplog: pytest.LogCaptureFixture) -> None:
    """Clips of 9 frames are 12 tokens; 24 hold two of them, and 8 their first five frames alone."""
    data = write_toml(talking.parent, "batch4.toml", batch=4)
    more: dict[str, Any] = {"network_args": HEARING, "max_train_epochs": 1}
    assert sorted(shapes(settings(data, weights, tmp_path / "a", **more))) == [(1, 3), (4, 3)]
    assert sorted(shapes(settings(data, weights, tmp_path / "b", max_tokens=24, **more))) == [(1, 3), (2, 3), (2, 3)]
    with caplog.at_level(logging.INFO):
        assert shapes(settings(data, weights, tmp_path / "c", max_tokens=8, **more)) == [(1, 2)] * CLIPS
    assert "5 of 5 clips are shown from their start alone: 5 with 5 of 9 frames" in caplog.text


def test_lengths_are_drawn_for_each_batch_and_kept_in_mind(talking: Path, weights: Path, tmp_path: Path,
                                                          shapes: Callable[..., list[tuple[int, int]]]) -> None:
    more: dict[str, Any] = {"network_args": HEARING, "max_train_epochs": 4, "random_length": True, "min_frames": 5}
    found = shapes(settings(talking, weights, tmp_path / "a", **more))
    assert {frames for _, frames in found} == {2, 3} and len(found) == 4 * CLIPS
    assert told_by(tmp_path / "a" / "t.safetensors").showing["min_frames"] == 5
    assert found == shapes(settings(talking, weights, tmp_path / "b", **more))


def test_the_start_of_latents_is_the_encoding_of_the_start(tiny_weights: Path) -> None:
    """The causal VAE: why a shortened clip needs no encoding of its own. Also of a picture with grey behind it."""
    vae = load_vae(tiny_weights / "Wan2.1_VAE.pth")
    video = torch.rand(1, 3, 21, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    still = torch.cat((video[:, :, :1], torch.zeros_like(video[:, :, 1:])), dim=2)
    for frames in (video, still):
        whole = vae.encode(frames)
        for count in (1, 2, 3, 5):
            part = vae.encode(frames[:, :, :4 * count - 3])
            torch.testing.assert_close(part, whole[:, :, :count], atol=1e-5, rtol=1e-5)
