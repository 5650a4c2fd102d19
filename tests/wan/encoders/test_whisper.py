"""Whisper's encoder by our own loop against transformers' model, and the rows that the preset makes of it."""

from pathlib import Path
import shutil

import pytest
from safetensors.torch import load_file, save_file
import torch
from transformers import WhisperFeatureExtractor, WhisperModel

from common.errors import WeightsError
from tests.light_set import value
from tests.wan.encoders.conftest import tiny_whisper_config
from wan.audio_presets import find_preset
from wan.encoders.audio import load_audio_encoder
from wan.encoders.whisper import WhisperEncoder, grouped, whisper_states

RATE = 16_000
PRESET = find_preset("whisper", "none")
"""Without loudness, so that the spectrogram is transformers' of the very sound."""


@pytest.fixture(scope="module")
def encoder(whisper: Path) -> WhisperEncoder:
    """The tiny random model."""
    return load_audio_encoder(whisper, preset=PRESET)


def spectrogram(sound: torch.Tensor) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=8)
    return extractor(sound.numpy(), sampling_rate=RATE, return_tensors="pt").input_features


def test_states_equal_those_of_the_model(whisper: Path) -> None:
    model = WhisperModel.from_pretrained(whisper, attn_implementation="sdpa").eval().requires_grad_(False)
    mel = spectrogram(value("loop", (RATE,)))
    expected = model.encoder(mel, output_hidden_states=True)
    states = whisper_states(model.encoder, mel)
    assert states.shape == (1500, 9, 16)
    torch.testing.assert_close(states[:, -1], expected.last_hidden_state[0])
    for index in range(8):
        torch.testing.assert_close(states[:, index], expected.hidden_states[index][0])


def test_groups_are_quarters_of_the_layers_and_the_last_state() -> None:
    """32 layers: states 0-7, 8-15, 16-23, 24-31 and 32 (audio.md 2.6); other depths in proportion, rounded down."""
    numbered = torch.arange(33.0)[None, :, None]
    assert grouped(numbered).flatten().tolist() == [3.5, 11.5, 19.5, 27.5, 32.0]
    assert grouped(numbered[:, :7]).flatten().tolist() == [0.0, 1.5, 3.0, 4.5, 6.0]
    assert grouped(numbered[:, :5]).flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_rows_are_read_where_the_frames_begin(encoder: WhisperEncoder) -> None:
    """At 25 fps every second state of the window; at 16 fps between them."""
    sound = value("sound", (2 * RATE,))
    states = grouped(whisper_states(encoder.model, spectrogram(sound)))
    rows = encoder.encode(sound, sample_rate=RATE, fps=25)
    assert rows.shape == (50, 5, 16)
    torch.testing.assert_close(rows, states[:100:2])
    slower = encoder.encode(sound, sample_rate=RATE, fps=16)
    torch.testing.assert_close(slower[2], torch.lerp(states[6], states[7], 0.25))


def test_a_sound_over_30_s_is_heard_in_windows(encoder: WhisperEncoder) -> None:
    sound = value("long", (31 * RATE,))
    rows = encoder.encode(sound, sample_rate=RATE, fps=25, frames=800)
    assert rows.shape == (800, 5, 16)
    first = encoder.encode(sound[:30 * RATE], sample_rate=RATE, fps=25)
    torch.testing.assert_close(rows[:749], first[:749])
    second = encoder.encode(sound[30 * RATE:], sample_rate=RATE, fps=25, frames=50)
    torch.testing.assert_close(rows[750:], second)


def test_both_layouts_of_a_file_are_read(whisper: Path, encoder: WhisperEncoder, tmp_path: Path) -> None:
    """`encoder.` as WhisperModel saves it, `model.encoder.` as the published files of the whole model do."""
    folder = tmp_path / "whole"
    shutil.copytree(whisper, folder)
    state = {f"model.{key}": tensor for key, tensor in load_file(whisper / "model.safetensors").items()}
    save_file({**state, "proj_out.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    sound = value("sound", (RATE,))
    assert torch.equal(load_audio_encoder(folder, preset=PRESET).encode(sound, sample_rate=RATE, fps=25),
                       encoder.encode(sound, sample_rate=RATE, fps=25))
    del state["model.encoder.layers.1.fc1.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: model\.encoder\.layers\.1\.fc1\.weight"):
        load_audio_encoder(folder, preset=PRESET)


def test_too_few_layers_are_refused(tmp_path: Path) -> None:
    WhisperModel(tiny_whisper_config(encoder_layers=3)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="3 layers"):
        load_audio_encoder(tmp_path, preset=PRESET)
