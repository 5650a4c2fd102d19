"""Sound at the wrong moment."""

from pathlib import Path

import pytest
import torch

from common.features import FeatureBatch, FeatureSpec, TensorSpec
from tests.training.cached_clips import AUDIO, bare, talking
from training.looking.shifted_sound import (
    compared_frames,
    moved,
    shortest_clip,
    why_not_compared,
    with_sound_moved,
    without_sound,
)
from wan.encoders.specs import SILENCE, audio_spec


def test_rows_move_and_the_edge_keeps_its_own() -> None:
    rows = torch.arange(8.0)[:, None]
    assert moved(rows, 3, 0)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert moved(rows, -3, 0)[:, 0].tolist() == [3, 4, 5, 6, 7, 5, 6, 7]
    assert rows[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("frames", [17, 21, 49, 81])
@pytest.mark.parametrize("shift", [5, -5])
def test_compared_frames_hear_only_rows_that_were_moved(frames: int, shift: int) -> None:
    """Latent frame t lasts over the video frames 4t-3 … 4t, the grouping of Wan's VAE."""
    heard = [row for t in compared_frames(frames) for row in range(4 * t - 3, 4 * t + 1)]
    result = moved(torch.arange(frames), shift, 0)
    assert heard and result[heard].tolist() == [row - shift for row in heard]


@pytest.mark.parametrize("frames", [17, 21, 49, 81])
def test_every_frame_that_can_be_compared_is(frames: int) -> None:
    def is_whole(t: int) -> bool:
        return all(5 <= row <= frames - 6 for row in range(4 * t - 3, 4 * t + 1))

    latent_frames = range(1, (frames - 1) // 4 + 1)
    assert list(compared_frames(frames)) == [t for t in latent_frames if is_whole(t)]


def test_a_clip_needs_seventeen_frames() -> None:
    assert shortest_clip() == 17
    assert list(compared_frames(17)) == [2] and not compared_frames(13) and not compared_frames(1)
    assert list(compared_frames(81)) == list(range(2, 19))


def test_the_tensors_with_an_axis_of_video_frames_move_and_nothing_else() -> None:
    spec = FeatureSpec("audio", 1, ("source", "span"), (
        TensorSpec("rows", "D N"), TensorSpec("parts", "N D", batching="list"), TensorSpec("loudness", "D")))
    sound = {"rows": torch.arange(6.0).expand(2, 1, 6), "parts": [torch.arange(6.0)[:, None]] * 2,
             "loudness": torch.ones(2, 1)}
    text = {"hidden": [torch.ones(1, 1)] * 2}
    batch = FeatureBatch({"audio": sound, "text": text}, frames=5, fps=25.0)
    late = with_sound_moved(batch, spec, 2)
    assert late.features["audio"]["rows"][1, 0].tolist() == [0, 1, 0, 1, 2, 3]
    assert late.features["audio"]["parts"][1][:, 0].tolist() == [0, 1, 0, 1, 2, 3]
    assert late.features["audio"]["loudness"] is sound["loudness"] and late.features["text"] is text
    assert batch.features["audio"]["rows"][1, 0].tolist() == list(range(6))


def test_encoded_silence_is_no_sound_that_moves() -> None:
    """With regions it is heard beside the speakers; moved, it would be part of the gap."""
    spec = audio_spec(more=(SILENCE,))
    sound = {name: torch.randn(1, 9, 2, 3, generator=torch.Generator().manual_seed(1)) for name in ("states", SILENCE)}
    late = with_sound_moved(FeatureBatch({"audio": sound}, frames=9, fps=25.0), spec, 2).features["audio"]
    assert torch.equal(late["states"][:, 2:], sound["states"][:, :-2])
    assert torch.equal(late[SILENCE], sound[SILENCE])


def test_no_sound_is_the_absence_that_training_and_guidance_know() -> None:
    batch = FeatureBatch({"audio": {"states": torch.ones(2, 5, 3, 4)}}, frames=5, fps=25.0,
                         present={"text": torch.ones(2, dtype=torch.bool)})
    silent = without_sound(batch, 2)
    assert silent.present["audio"].tolist() == [False, False] and "text" in silent.present
    assert "audio" not in batch.present


def test_clips_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    assert why_not_compared(talking(tmp_path, "a")) == ""
    assert why_not_compared(talking(tmp_path, "b", has_sound=False)) == "without sound"
    assert why_not_compared(talking(tmp_path, "c", frames=13)) == "shorter than 17 frames"
    assert why_not_compared(bare("d")[0]) == "without sound"
    assert AUDIO.tensors[0].shape.split()[0] == "N"
