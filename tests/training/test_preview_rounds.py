"""When previews are made, what becomes of faults and stops, and what is refused before training."""

from pathlib import Path
import signal
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
import scipy.stats
import torch

from common.errors import ConfigError
from common.media.image import read_image
from common.media.sound import read_sound
from common.media.video import probe_video, read_frames
from tests.training.preview_runs import config_of, loop_of, models, ready, write_prompts
from tests.training.runs import settings
from training import train
import training.build
from training.looking.preview_page import read_previews
from training.signals import Interrupted
from training.step import draw
from training.timesteps import TimestepSettings, sigmas
from wan.modules.dit import WanDiT


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), root)


def videos(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "sample").glob("*.mp4"))


def test_a_stop_inside_a_preview_is_obeyed_and_the_missing_one_is_made_later(
        talking: Path, weights: Path, prompts: Path, tmp_path: Path) -> None:
    config = config_of(talking, weights, tmp_path, prompts, sample_every_n_steps=2)
    previews, dit = ready(config)
    passes = iter(range(100))

    def stop(*_: Any) -> None:
        if next(passes) == 3:  # the second solver step of the second preview
            signal.raise_signal(signal.SIGINT)

    hook = dit.register_forward_pre_hook(stop)
    with pytest.raises(Interrupted):
        loop_of(3, previews).run()
    hook.remove()
    assert videos(tmp_path) == ["t_step00000002_00.mp4"] and previews.failures == 0
    assert previews.remembered() == {"step": 2, "done": [0]}
    first = (tmp_path / "sample" / "t_step00000002_00.mp4").stat().st_mtime_ns

    later, _ = ready(config)
    later.recall(previews.remembered())
    loop_of(3, later, at=2).run()
    assert videos(tmp_path) == [f"t_step0000000{step}_0{number}.mp4" for step in (2, 3) for number in (0, 1)]
    assert (tmp_path / "sample" / "t_step00000002_00.mp4").stat().st_mtime_ns == first
    assert later.remembered() == {"step": 3, "done": [0, 1]}

    last, dit = ready(config)
    last.recall(later.remembered())
    dit.register_forward_pre_hook(lambda *_: pytest.fail("all of it was made"))
    loop_of(3, last, at=3).run()
    assert last.failures == 0


def test_a_round_changes_neither_the_times_nor_the_state_of_a_training(
        talking: Path, weights: Path, prompts: Path, tmp_path: Path) -> None:
    previews, dit = ready(config_of(talking, weights, tmp_path, prompts, sample_at_first=True))
    network = previews._network
    rules = TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0)

    def times(epoch: int) -> torch.Tensor:
        return 1000 * sigmas(draw(range(2000), (1, 1, 1, 1), seed=7, epoch=epoch).uniform, rules, (4, 4))

    before, random = times(1), torch.get_rng_state()
    loop_of(1, previews).run()
    assert len(videos(tmp_path)) == 4
    after = times(2)
    assert torch.equal(times(1), before) and torch.equal(torch.get_rng_state(), random)
    assert scipy.stats.ks_2samp(before.numpy(), after.numpy()).pvalue > 0.01
    assert len(after.unique()) > 900
    assert network.training and all(one.requires_grad for one in network.parameters())
    assert dit.training is False


def test_a_preview_that_fails_is_told_and_training_goes_on(
        talking: Path, weights: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    load = training.build.load_base

    def full(module: WanDiT, *_: Any) -> None:
        if not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def load_base(*arguments: Any) -> WanDiT:
        dit = load(*arguments)
        dit.register_forward_pre_hook(full)
        return dit

    more: dict[str, Any] = {"max_train_steps": 2}
    plain = train(config_of(talking, weights, tmp_path / "plain", prompts, **more).model_copy(update={
        "previews": settings(talking, weights, tmp_path).previews}))
    monkeypatch.setattr(training.build, "load_base", load_base)
    looked = train(config_of(talking, weights, tmp_path / "out", prompts, sample_at_first=True, **more))
    assert caplog.text.count("failed, training goes on: 32x32 with 5 frames does not fit into the memory") == 2
    assert "Traceback" in caplog.text and "Tried to allocate 2.00 GiB" in caplog.text
    assert "4 previews could not be made" in caplog.text and videos(tmp_path / "out") == []
    one, two = load_file(plain or ""), load_file(looked or "")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_held_out_clips_are_shown_from_their_media(talking: Path, weights: Path, tmp_path: Path) -> None:
    train(settings(talking, weights, tmp_path, validation_count=2, sample_held_out=2, sample_infer_steps=2,
                   max_train_steps=1, network_args=["conditions=omniavatar_add"], **models(weights)))
    shown = read_previews(tmp_path / "sample")
    assert [one.stem for one in shown] == ["t_step00000001_00", "t_step00000001_01"]
    for one in shown:
        name = one.training["from"].removeprefix("held-out ").partition("@")[0]
        source = talking.parent / "clips" / name
        assert one.settings["prompt"] == source.with_suffix(".txt").read_text(encoding="utf-8").strip()
        picture = read_frames(source, fps=25, count=1, size=(32, 32))[0]
        assert np.array_equal(picture, read_image(one.settings["image_path"])[0])
        assert read_sound(one.settings["audio"]).duration_s == 9 / 25
        info = probe_video(tmp_path / "sample" / f"{one.stem}.mp4")
        assert info.frames == 9 and info.has_sound and one.training["held_out_loss"] > 0
    assert "held out" in (tmp_path / "sample" / "index.html").read_text(encoding="utf-8")


def test_held_out_clips_whose_media_are_away_are_refused(talking: Path, weights: Path, tmp_path: Path) -> None:
    clips = talking.parent / "clips"
    config = settings(talking, weights, tmp_path, validation_count=1, sample_held_out=1,
                      network_args=["conditions=omniavatar_add"], **models(weights))
    clips.rename(talking.parent / "away")
    try:
        with pytest.raises(ConfigError, match=r"the media of head_00\d.mp4@0 are not there, and caches hold neither"):
            train(config)
    finally:
        (talking.parent / "away").rename(clips)


@pytest.mark.parametrize(("more", "line", "message"), [
    ({"vae": None}, "", "--vae is required"),
    ({"wav2vec": None}, "", "line 1: generate: --wav2vec is required"),
    ({}, "a head --i none.png --a a.wav", "line 1: generate: --image_path none.png: no such file"),
    ({}, "a head --i face.png", "line 1: generate: --audio is required"),
    ({}, "a head --i face.png --a a.wav --q 3", "line 1: unknown option --q"),
    ({}, "a head --i face.png --a a.wav --f 6", "line 1: GenerationRequest: --video_length 6"),
    ({"sample_held_out": 1}, "", "--sample_held_out 1: nothing is held out"),
    ({"sample_held_out": 3, "validation_count": 2}, "", "2 held-out clips can be shown"),
], ids=["vae", "wav2vec", "picture", "sound", "option", "length", "held out", "too many"])
def test_what_cannot_be_shown_is_refused_before_weights_are_read(
        more: dict[str, Any], line: str, message: str, talking: Path, weights: Path, prompts: Path, tmp_path: Path,
        caplog: pytest.LogCaptureFixture) -> None:
    path = prompts.with_name("wrong.txt")
    path.write_text((line or "a head --i face.png --a a.wav --f 5") + "\n", encoding="utf-8")
    config = config_of(talking, weights, tmp_path, path, **{**models(weights), **more})
    with caplog.at_level("INFO"), pytest.raises(ConfigError) as caught:
        train(config)
    assert message in str(caught.value), str(caught.value)
    assert "base wan2.1_t2v_tiny" not in caplog.text and "loaded" not in caplog.text


def test_a_record_names_the_checkpoint_of_its_step_and_never_the_best_file_that_changes(
        talking: Path, weights: Path, prompts: Path, tmp_path: Path) -> None:
    """Else the record of an early preview would one day make another video."""
    train(config_of(talking, weights, tmp_path, prompts, save_every_n_steps=2, sample_every_n_steps=1,
                    validation_count=1, validate_every_n_steps=1, validation_sigmas=[0.5], max_train_steps=3,
                    learning_rate=1e-2, optimizer_type="SGD"))
    assert (tmp_path / "t-best.safetensors").exists()
    named = {one.training["step"]: one.training["checkpoint"] for one in read_previews(tmp_path / "sample")}
    assert named == {1: None, 2: str(tmp_path / "t-step00000002.safetensors"), 3: str(tmp_path / "t.safetensors")}
