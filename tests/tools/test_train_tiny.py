"""The trainings of the small set, at sizes that take seconds: losses fall, files load, statistics are folded right."""

import argparse
from collections.abc import Iterator
import json
from pathlib import Path
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch

from common.errors import ConfigError
from tests.conftest import ROOT
from tools.heads.clip import render_clip
from tools.heads.laws import MouthCurves
from tools.heads.scene import draw_scene
from tools.tiny import curves, train_audio, train_dit, train_vae, training
from tools.tiny.bank import Bank
from tools.tiny.banks import bank_of
from tools.tiny.fast_convs import decode_means, encode_means, use_picture_convs
from tools.tiny.measure_vae import mouth_r, psnr_db
from tools.tiny.sounds import random_sound
from tools.tiny.speech import RATE_HZ
from tools.tiny.vae_batches import SPOILED, Batches
from tools.tiny.write import write_encoders
import wan
from wan.encoders.audio_features import conv_positions, hidden_states
from wan.modules.vae import Vae
from wan.modules.vae_coders import VaeShape
from wan.modules.vae_layers import PastFrames, causal_conv

SIZES = ["--clips", "4", "--frames", "9", "--size", "32", "--batch", "4"]


def settings_of(**values: float) -> argparse.Namespace:
    """Flags of a training."""
    values = {"steps": 40, "minutes": 5, "rate": 1e-2, "batch": 4, "seed": 0} | values
    return argparse.Namespace(until=time.monotonic() + 60 * values["minutes"], **values)


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """What a training lets a GPU do is the process's; behind each test it is as before."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32
    yield
    cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32 = before


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of six utterances of modulated noise, as `tools.tiny.speech` writes it."""
    rng = np.random.default_rng(0)
    length = 2 * RATE_HZ
    syllables = np.abs(np.sin(2 * np.pi * 3 * np.arange(length) / RATE_HZ))
    parts = [(8000 * rng.normal(0, 0.3, length).clip(-1, 1) * np.roll(syllables, 700 * i)).astype(np.int16)
             for i in range(6)]
    path = tmp_path_factory.mktemp("speech") / "speech.npz"
    np.savez(path, samples=np.concatenate(parts), ends=np.cumsum([len(part) for part in parts]))
    return path


@pytest.fixture(scope="module")
def bank() -> Bank:
    """Three one-head clips of 9 frames and 64 pixels whose mouths open and close."""
    opening = np.abs(np.sin(np.arange(9) / 2))
    scenes = [draw_scene(20_000 + i) for i in range(3)]
    clips = [render_clip(scene, [MouthCurves(opening, np.zeros(9))], size=64, frames=9) for scene in scenes]
    return Bank(np.stack([clip.pictures for clip in clips]), [scene.caption for scene in scenes],
                np.stack([opening[:, None]] * 3), np.stack([clip.boxes for clip in clips]).astype(np.uint16))


def command(module, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """A training's main with these flags."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    return module.main()


def test_the_rate_is_a_cosine_of_the_steps_and_the_clock_only_shortens_it() -> None:
    course = training.Course(settings_of(steps=400, rate=1.0))
    rates = [course.rate for _ in course]
    assert len(rates) == 400
    assert rates[0] == pytest.approx(1 / 21)
    assert max(rates) == pytest.approx(rates[20]) == pytest.approx(0.5 + 0.5 * np.cos(np.pi * 20 / 400))
    assert rates[200] == pytest.approx(0.5)
    assert rates[-1] < 1e-4
    short = training.Course(settings_of(steps=10**9, minutes=0.05 / 60, rate=1.0))
    rates = [short.rate for _ in short]
    assert 0.9 < short.passed < 1.5  # a second at least
    assert short.progress >= 1 and rates[-1] < 0.01


def test_the_first_step_may_compile_without_taking_from_the_course() -> None:
    course = training.Course(settings_of(steps=4, minutes=0.5 / 60))
    for step in course:
        time.sleep(1.2 if step == 1 else 0)
    assert course.step == 4  # with the first step, the second that a course has at least would be over
    assert course.passed < 1.1


def test_masters_keep_what_bfloat16_would_lose_and_end_with_the_mean() -> None:
    model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    masters = training.Masters(model, decay=0.0, mean=0.5)
    for _ in range(10):
        model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        masters.step(1e-4)  # Adam moves by the rate a step; bfloat16 near 1 steps by 4e-3
    assert masters.full[0].item() == pytest.approx(1 - 10e-4, abs=2e-5)
    assert 1 - 10e-4 < masters.mean[0].item() < 1
    masters.use_mean()
    assert model.weight.item() == torch.tensor(masters.mean[0].item(), dtype=torch.bfloat16).item()


def test_picture_convolutions_give_what_the_causal_ones_give() -> None:
    torch.manual_seed(0)
    layer = causal_conv(5, 7, 3)
    chunks = torch.randn(2, 5, 3, 6, 8), torch.randn(2, 5, 4, 6, 8)
    past = PastFrames()
    expected = [layer(chunk, past) for chunk in chunks]
    vae = Vae(VaeShape(width=4))
    vae.add_module("extra", layer)
    use_picture_convs(vae)
    past = PastFrames()
    for chunk, wanted in zip(chunks, expected, strict=True):
        torch.testing.assert_close(layer(chunk, past), wanted, atol=2e-6, rtol=1e-5)
    video = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    with torch.no_grad():
        fast = encode_means(vae, video), decode_means(vae, encode_means(vae, video))
        use_picture_convs(vae, False)
        means = torch.cat(list(vae.posterior_means(video)), 2)
        plain = means, torch.cat(list(vae.decode_means(means)), 2)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_batches_mark_the_mouths_and_spoil_their_share(bank: Bank) -> None:
    batch = Batches(bank, "cpu", 0).draw(8, 5, 64)
    assert batch.video.shape == (8, 3, 5, 64, 64)
    assert batch.mouth.shape == (8, 1, 5, 64, 64)
    assert batch.video.abs().max() <= 1
    shares = batch.mouth.mean((1, 2, 3, 4))
    assert (shares[:int(8 * SPOILED)] == 0).all()
    left, top, right, bottom = np.moveaxis(bank.boxes.astype(int), -1, 0)
    areas = (right - left) * (bottom - top)
    assert ((shares[2:] > 0.9 * areas.min() / 64**2) & (shares[2:] < 1.1 * areas.max() / 64**2)).all()
    # Lips are redder than what is around them, mirrored or not: the mask lies where the mouth is.
    red = batch.video[2:, 0] - batch.video[2:, 1]
    mask = batch.mouth[2:, 0]
    inside, outside = (red * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)), (red * (1 - mask)).sum((1, 2, 3)) / (
        1 - mask).sum((1, 2, 3))
    assert (inside > outside + 0.05).float().mean() > 0.8
    again = Batches(bank, "cpu", 0).draw(8, 5, 64)
    assert torch.equal(again.video, batch.video)
    assert Batches(bank, "cpu", 0).draw(4, 9, 32).video.shape == (4, 3, 9, 32, 32)


def test_a_pass_that_is_tried_before_training_teaches_nothing(bank: Bank) -> None:
    assert train_vae.sizes_of(16, 81, 128) == ((16, 33, 64), (4, 81, 128))
    assert train_vae.sizes_of(2, 9, 32) == ((2, 9, 16), (1, 9, 32))
    vae = Vae(VaeShape(width=4))
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    made, shapes = train_vae.make_pass(vae, "cpu"), []

    def forward(batch, noise):
        shapes.append((tuple(batch.video.shape), tuple(noise.shape)))
        return made(batch, noise)

    train_vae.try_pass(vae, forward, Batches(bank, "cpu", 0), (4, 5, 32))
    assert shapes == [((4, 3, 5, 32, 32), (4, 16, 2, 4, 4))]
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())


def test_the_vae_learns_and_its_folded_latents_are_normalised(bank: Bank) -> None:
    torch.manual_seed(0)
    vae = Vae(VaeShape(width=4))
    bank = Bank(bank.pictures[:, :5, ::2, ::2], bank.captions, bank.openings[:, :5], bank.boxes[:, :5] // 2)
    course = training.Course(settings_of(steps=25))
    train_vae.train(vae, Batches(bank, "cpu", 0), course, 4)
    losses = [row["loss"] for row in course.log]
    assert np.mean(losses[15:20]) < 0.7 * np.mean(losses[:3])  # all of quarters
    means = train_vae.means_of(vae, bank, "cpu")
    before = decode_means(vae, means)
    train_vae.fold_statistics(vae, means)
    folded = train_vae.means_of(vae, bank, "cpu")
    torch.testing.assert_close(decode_means(vae, folded), before, atol=2e-3, rtol=1e-3)
    video = torch.from_numpy(bank.pictures).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(video)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=2e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(16), atol=5e-3, rtol=0)


def test_psnr_and_mouths_of_pictures_that_are_known() -> None:
    black = np.zeros((2, 9, 8, 8, 3), np.uint8)
    assert psnr_db(black + 51, black) == pytest.approx([20 * np.log10(5)] * 2, abs=1e-3)
    opening = 0.5 + 0.5 * np.sin(np.arange(24) / 2)
    clip = render_clip(draw_scene(20_003), [MouthCurves(opening, np.zeros(24))], size=128, frames=24)
    right = mouth_r(clip.pictures, opening)
    assert right is not None and right > 0.9
    assert mouth_r(np.zeros((24, 64, 64, 3), np.uint8), opening) is None


def test_the_vae_and_the_dit_train_by_their_commands(speech: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    write_encoders(tmp_path)
    assert command(train_vae, monkeypatch, tmp_path, "--speech", speech, *SIZES, "--width", "4", "--steps", "4") == 0
    record = json.loads((tmp_path / "train_vae.json").read_text())
    assert {"settings", "device", "torch", "steps", "seconds", "summary", "log"} <= set(record)
    assert record["steps"] == 4 and len(record["log"]) == 4
    assert record["settings"]["clips"] == 4 and record["settings"]["speech"] == "speech.npz"
    assert record["summary"]["latent_deviation"] == pytest.approx(1, abs=0.3)
    assert {"unseen_psnr_db", "unseen_mouth_r", "rendered_mouth_r"} <= set(record["summary"])
    assert wan.load_vae(tmp_path).shape.width == 4
    further = tmp_path / "further"
    assert command(train_vae, monkeypatch, further, "--speech", speech, *SIZES, "--steps", "3", "--decoder_of",
                   tmp_path) == 0
    before, after = (wan.load_vae(folder).state_dict() for folder in (tmp_path, further))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(("encoder.", "conv1."))} <= kept  # its latents stay
    assert not {"decoder.conv1.weight", "decoder.head.2.weight", "conv2.weight"} & kept
    record = json.loads((further / "train_vae_decoder.json").read_text())
    assert record["steps"] == 3 and {row["side"] for row in record["log"]} == {32}  # whole clips

    monkeypatch.setattr(train_dit, "VARIANT", train_dit.Variant(
        dim=128, ffn_dim=64, layers=1, heads=1, in_channels=16, out_channels=16, text_dim=train_dit.TEXT_DIM))
    banks = tmp_path / "banks"
    flags = ["--weights", tmp_path, "--speech", speech, "--banks", banks, "--double_clips", "2", *SIZES]
    assert command(train_dit, monkeypatch, tmp_path, *flags, "--render_only") == 0
    assert len(list(banks.glob("*/words.json"))) == 4
    assert not (tmp_path / train_dit.FILE).exists()
    assert command(train_dit, monkeypatch, tmp_path, *flags, "--steps", "25", "--rate", "5e-3") == 0
    record = json.loads((tmp_path / "train_dit.json").read_text())
    losses = [row["loss"] for row in record["log"]]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert record["summary"]["unseen_loss"] > 0 and record["summary"]["unseen_two_head_loss"] > 0
    assert wan.load_dit(tmp_path / train_dit.FILE).variant.dim == 128


def test_examples_hold_what_they_say() -> None:
    data = train_dit.Encoded(torch.randn(5, 16, 3, 4, 4), torch.randn(8, 6, train_dit.TEXT_DIM))
    wide = train_dit.Encoded(torch.randn(2, 16, 3, 4, 8), torch.randn(5, 6, train_dit.TEXT_DIM))
    source = train_dit.examples(data, wide, 40, 0)
    drawn = [next(source) for _ in range(100)]
    assert {one.latents.shape[2] for one in drawn} == {3}
    wide_share = np.mean([one.latents.shape[-1] == 8 for one in drawn])
    assert 0.03 < wide_share < 0.25
    assert {len(one.latents) for one in drawn if one.latents.shape[-1] == 8} == {20}
    given = torch.cat([one.given.mask[:, 0, :, 0, 0].sum(1) for one in drawn])
    assert given.max() == 2  # one frame is always left to be made
    assert (given == 0).float().mean() == pytest.approx(0.2, abs=0.04)
    dit = train_dit.fresh_dit("cpu")
    one = drawn[0]
    free = 1 - one.given.mask.float()
    expected = (((one.noise - one.latents) ** 2 * free).mean((1, 2, 3, 4)) / free.mean((1, 2, 3, 4))).mean()
    assert train_dit.flow_loss(dit, one).item() == pytest.approx(expected.item(), rel=1e-4)  # it begins with zero


def test_the_audio_encoder_trains_by_its_command(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_audio, "FRAMES", 25)
    folder = tmp_path / "wav2vec2-base-960h"
    assert command(train_audio, monkeypatch, folder, "--speech", speech, "--clips", "24", "--steps", "40", "--batch",
                   "8", "--rate", "5e-3") == 0
    record = json.loads((tmp_path / "train_audio.json").read_text())
    losses = [row["loss"] for row in record["log"]]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert -1 <= record["summary"]["unheard_opening_r"] <= 1
    encoder = wan.load_audio_encoder(folder)
    assert (encoder.states, encoder.width) == (3, 32)


def test_states_of_many_sounds_are_those_of_each() -> None:
    model = train_audio.fresh_model().eval()
    sounds = [np.random.default_rng(i).normal(0, 0.1, 12 * train_audio.PER_FRAME).astype(np.float32) for i in range(2)]
    padded = torch.stack([train_audio.padded(model, sound, 12) for sound in sounds])
    with torch.no_grad():
        together = train_audio.states_of(model, padded, 12)
        for sound, states in zip(padded, together, strict=True):
            one = hidden_states(model, sound, conv_positions(12, 25, 320))
            torch.testing.assert_close(states, one, atol=1e-5, rtol=1e-4)


def test_sounds_are_finite_changed_and_the_same_for_a_seed() -> None:
    utterances = [np.sin(np.arange(8000) / 10).astype(np.float32)]
    many = [random_sound(np.random.default_rng(seed), utterances, 16_000) for seed in range(40)]
    assert all(np.isfinite(sound).all() and 0.01 < np.abs(sound).max() <= 0.951 for sound in many)
    assert not np.array_equal(many[0], many[1])
    assert np.array_equal(many[3], random_sound(np.random.default_rng(3), utterances, 16_000))


def write_record(folder: Path, name: str, log: list[dict[str, float]]) -> None:
    """A training's record with this log."""
    (folder / name).write_text(json.dumps({"steps": len(log), "seconds": 1.0, "device": "CPU", "log": log}))


def test_curves_are_drawn_from_the_records_and_wrong_ones_are_refused(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": i + 1, "loss": 1 / (i + 1), "psnr_db": 10.0 + i, "side": 16 if i < 4 else 32,
             "opening_error": 0.1 / (i + 1)} for i in range(6)]
    assert curves.changes(rows) == [5]
    for name in ("train_vae.json", "train_dit.json", "train_audio.json"):
        write_record(tmp_path, name, rows)
    out = tmp_path / "pictures"
    assert command(curves, monkeypatch, tmp_path, "--out", out) == 0
    pictures = {path.name: cv2.imread(str(path)) for path in out.iterdir()}
    assert set(pictures) == {"tiny-vae.png", "tiny-dit.png", "tiny-wav2vec2.png"}
    blue = pictures["tiny-dit.png"].astype(int)  # tab:blue, as BGR
    assert (np.abs(blue - (180, 119, 31)).max(-1) < 10).sum() > 100
    write_record(tmp_path, "train_dit.json", [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 0.01}])
    command(curves, monkeypatch, tmp_path, "--out", out)
    assert not np.array_equal(cv2.imread(str(out / "tiny-dit.png")), pictures["tiny-dit.png"])

    write_record(tmp_path, "train_vae.json", rows[:1])
    del rows[3]["opening_error"]
    write_record(tmp_path, "train_audio.json", rows)
    with pytest.raises(ConfigError, match=r"train_audio\.json: rows of 'log' lack opening_error"):
        command(curves, monkeypatch, tmp_path, "--out", tmp_path / "none")
    write_record(tmp_path, "train_dit.json", [])
    with pytest.raises(ConfigError, match="no rows in 'log'"):
        command(curves, monkeypatch, tmp_path, "--out", tmp_path / "none")
    (tmp_path / "train_vae.json").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        command(curves, monkeypatch, tmp_path, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()  # all records are read before the first picture


@pytest.mark.parametrize("wrong", [{"frames": 10}, {"size": 40}, {"clips": 0}])
def test_impossible_banks_are_refused(wrong: dict[str, int], speech: Path) -> None:
    settings = argparse.Namespace(speech=speech, frames=9, size=32, banks=None)
    clips = wrong.pop("clips", 4)
    for name, value in wrong.items():
        setattr(settings, name, value)
    with pytest.raises(ConfigError, match=r"4n\+1"):
        bank_of(settings, clips=clips, seed=0)


def test_missing_speech_and_no_steps_are_refused(tmp_path: Path) -> None:
    settings = argparse.Namespace(speech=tmp_path / "none.npz", frames=9, size=32, banks=None)
    with pytest.raises(ConfigError, match="tools.tiny.speech"):
        bank_of(settings, clips=1, seed=0)
    with pytest.raises(ConfigError, match="above 0"):
        training.start(settings_of(steps=0))


EXPLAIN = """
import contextlib, io, runpy, sys, time
for name in sys.argv[1:]:
    before, said = time.process_time(), io.StringIO()
    sys.argv[1:] = ["--help"]
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module(f"tools.tiny.{name}", run_name="__main__")
    print(name, time.process_time() - before, said.getvalue().startswith("usage: "))
"""


def test_commands_explain_themselves_at_once() -> None:
    """In one process; processor time, since other tests run beside this one. The first one pays for torch."""
    names = ["train_vae", "train_dit", "train_audio", "measure_vae", "measure_audio", "curves"]
    done = subprocess.run([sys.executable, "-c", EXPLAIN, *names], cwd=ROOT, check=True, capture_output=True, text=True)
    told = [line.split() for line in done.stdout.splitlines()]
    assert [(name, is_help) for name, _, is_help in told] == [(name, "True") for name in names]
    assert all(float(seconds) < 2.5 for _, seconds, _ in told), told
