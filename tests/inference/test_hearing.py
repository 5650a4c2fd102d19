"""The whole sound, at once and in windows, and the rows of a chunk."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from inference.hearing import cut_rows, hear
import wan

RATE = 16_000


@pytest.fixture(scope="module")
def encoder(tiny_weights):
    return wan.load_audio_encoder(tiny_weights / "wav2vec2-base-960h")


def speech(seconds: float) -> np.ndarray:
    """Noise whose loudness goes up and down, like syllables."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(1).standard_normal(len(time))
    return (0.2 * noise * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def test_a_sound_within_the_window_is_encoded_whole(encoder):
    sound = speech(3)
    whole = encoder.encode(torch.from_numpy(sound), sample_rate=RATE, fps=25, frames=81)
    assert torch.equal(hear(encoder, sound, rows=81, fps=25, window_s=3), whole)


@pytest.mark.parametrize("fps", [25.0, 23.976, 16.0])
def test_a_longer_sound_gives_a_row_for_every_frame_and_no_seam(encoder, fps):
    """Where windows meet, rows change no more than they do elsewhere, and they stay near those of the whole sound."""
    sound, rows = speech(60), round(62 * fps)
    whole = encoder.encode(torch.from_numpy(sound), sample_rate=RATE, fps=fps, frames=rows)
    parts = hear(encoder, sound, rows=rows, fps=fps, window_s=20)
    assert parts.shape == whole.shape and parts.dtype == torch.float32
    inside = round(60 * fps)
    difference = (parts - whole)[:inside].norm() / whole[:inside].norm()
    assert 0 < difference < 0.2
    step = int(20 * fps) - 2 * -(-int(5 * fps * 1000) // 1000)
    changes = (parts[1:inside] - parts[:inside - 1]).flatten(1).norm(dim=1)
    seams = [changes[row - 1] for row in range(step, inside, step)]
    assert max(seams) < 3 * changes.median()


def test_memory_of_a_long_sound_is_that_of_a_window(encoder):
    """The longest waveform that the model is shown at once does not grow with the sound."""
    seen = []
    handle = encoder.model.feature_extractor.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    try:
        hear(encoder, speech(90), rows=2250, fps=25, window_s=20)
        longest = max(shape[-1] for shape in seen)
    finally:
        handle.remove()
    assert len(seen) == 9 and 20 * RATE <= longest < 20.1 * RATE


def test_a_chunk_hears_its_rows_and_those_beside_it():
    rows = torch.arange(10.0)[:, None, None]
    heard = {name: part.flatten().tolist() for name, part in cut_rows(rows, range(4, 9)).items()}
    assert heard == {"before": [2, 3], "states": [4, 5, 6, 7, 8], "after": [9, 9]}
    first = {name: part.flatten().tolist() for name, part in cut_rows(rows, range(-1, 4)).items()}
    assert first == {"before": [0, 0], "states": [0, 0, 1, 2, 3], "after": [4, 5]}
    ends = [(cut_rows(rows, range(a, a + 5))["after"][0, 0, 0, 0].item(),
             cut_rows(rows, range(b, b + 5))["states"][0, 0, 0, 0].item()) for a, b in pairwise(range(0, 6, 5))]
    assert ends == [(5.0, 5.0)], "after one chunk comes what the next one begins with"
