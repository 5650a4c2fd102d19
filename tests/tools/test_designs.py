"""The comparison of the designs asks for what the scripts take, and measures what it says it measures."""

import mmap
from pathlib import Path
import time

import numpy as np
import pytest
import torch

from common.config import parse
from common.media.sound import Sound
from common.media.video import write_video
from common.tensorfile import save_tensors
from evaluation.sync import speech_envelope
from inference.guidance import Step
from tools.heads.laws import FPS
from tools.heads.write import RATE_HZ
from tools.proof.commands import SET, dataset_toml, train_command
from tools.proof.designs import Outcome, count_parameters, table
from tools.proof.inputs import unseen_sounds
from tools.proof.long import LongResult, jumps, words_of
from tools.proof.measure import Summary
from tools.proof.memory import ChunkMemory
from tools.proof.recipe import DESIGNS, LONG, PROTOCOL
from tools.proof.two_speakers import PAIRS, frames_of, mouths_against_sounds, render_pair
from training.config import TrainConfig

HELD = 200 * 2**20


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_is_trained_under_one_protocol(design: str, tmp_path: Path) -> None:
    recipe = DESIGNS[design]
    words = train_command(recipe, tmp_path / "talking.toml", tmp_path / "lora")
    settings = parse(TrainConfig, words[words.index("train_network.py") + 1:], prog="test", description="")
    assert f"conditions={recipe.conditions}" in settings.network.network_args
    assert design in recipe.conditions.split(",")
    for name in ("steps", "batch_size", "target_frames", "spans", "network_dim", "learning_rate", "shift", "seed",
                 "infer_steps", "guidance_scale", "train_args", "faces", "sounds"):
        assert getattr(recipe, name) == getattr(PROTOCOL, name), name


def test_parameters_are_those_of_the_conditions_alone(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_tensors(path, {"conditions.a.x": torch.zeros(3, 4), "conditions.a.b": torch.zeros(5),
                        "lora_unet_q.lora_up.weight": torch.zeros(7, 2)}, {})
    assert count_parameters(path) == 17


def test_the_table_has_a_line_a_design_and_goals_are_kept() -> None:
    good = Summary(clips=2, measured=2, mean_r=0.7, least_r=0.6, largest_lag=1, mean_other=0.1, mean_size_other=0.1)
    late = Summary(clips=2, measured=2, mean_r=0.7, least_r=0.6, largest_lag=2, mean_other=0.1, mean_size_other=0.1)
    unseen = Summary(clips=2, measured=1, mean_r=0.7, least_r=0.6, largest_lag=0, mean_other=0.1, mean_size_other=0.1)
    outcomes = [Outcome(str(i), 1234567, 0.25, one) for i, one in enumerate((good, late, unseen))]
    assert [one.is_good for one in outcomes] == [True, False, False]
    assert "| `0` | 1,234,567 | 0.250 | +0.700 | +0.600 | +1 frames | +0.100 |" in table(outcomes)


def test_a_jump_is_the_change_at_a_seam_over_the_change_elsewhere() -> None:
    change = np.array([0.0, 100, 2, 2, 6, 2, 2, 1])  # of frame 1 to the given picture: it does not count
    assert jumps(change, (4, 7)) == pytest.approx((6 / 2, 1 / 2))


def test_what_goes_on_for_long_videos_is_a_command_that_the_trainer_takes(tmp_path: Path) -> None:
    words = train_command(LONG, tmp_path / "talking.toml", tmp_path / "lora", tmp_path / "first.safetensors")
    settings = parse(TrainConfig, words[words.index("train_network.py") + 1:], prog="test", description="")
    assert settings.network.dim_from_weights and settings.network.network_weights == tmp_path / "first.safetensors"
    assert settings.showing.prefix_corruption > 0 and not settings.validation.is_wanted
    assert 'reference = "random"' in dataset_toml(LONG, tmp_path / "clips", tmp_path / "cache")


def test_a_long_result_is_good_only_where_every_goal_is_met() -> None:
    good = {"frames": 1500, "expected": 1500, "seams": (81, 149), "jumps": (1.2, 0.9), "r_first": 0.8, "r_last": 0.73,
            "r_whole": 0.75, "peaks_mib": (900.0, 1000.0, *[1001.0] * 8), "seconds": 60.0}
    assert LongResult(**good).is_good
    assert "1500 of 1500" in words_of(LongResult(**good), "a title")
    for name, value in (("frames", 1499), ("jumps", (1.6, 0.9)), ("r_last", 0.7), ("r_first", None),
                        ("peaks_mib", (900.0, 1000.0, *[1100.0] * 8))):
        assert not LongResult(**{**good, name: value}).is_good, name


def test_memory_is_told_by_chunk() -> None:
    with ChunkMemory("cpu") as memory:
        for chunk in range(2):
            for index in range(2):
                memory.watch(Step(index, 2, 0.5), torch.zeros(1))
            if chunk == 1:  # pages of its own: what Python has freed before may be used again without growing
                with mmap.mmap(-1, HELD) as pages:
                    pages.write(bytes(HELD))
                    time.sleep(0.2)
            time.sleep(0.1)
    assert len(memory.peaks) == 2 and memory.peaks[1] > memory.peaks[0] + HELD / 2**21


def test_each_mouth_of_a_rendered_pair_follows_its_own_sound(tmp_path: Path) -> None:
    sounds = [unseen_sounds(SET / "unseen")[i] for i in PAIRS[0]]
    import soundfile

    waves = [soundfile.read(path, dtype="float32")[0] for path in sounds]
    write_video(tmp_path / "two.mp4", render_pair(2000, sounds), fps=FPS,
                sound=Sound(np.stack(waves).sum(0, keepdims=True) / 2, RATE_HZ))
    found = mouths_against_sounds(frames_of(tmp_path / "two.mp4"), sounds)
    assert min(found[0, 0], found[1, 1]) > 0.95
    assert max(abs(found[0, 1]), abs(found[1, 0])) < 0.2


def test_the_unseen_pairs_hardly_resemble_each_other() -> None:
    import soundfile

    paths = unseen_sounds(SET / "unseen")
    for left, right in PAIRS:
        one, other = (speech_envelope(soundfile.read(paths[i])[0], RATE_HZ, 81, FPS) for i in (left, right))
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


