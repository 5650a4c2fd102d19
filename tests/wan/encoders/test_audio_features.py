"""The own layer loop against transformers, and the arithmetic of frames and samples."""

from fractions import Fraction

import pytest
import torch
from transformers import Wav2Vec2Model

from common.timebase import as_fraction
from tests.light_set import value
from tests.wan.encoders.conftest import tiny_wav2vec2_config
from wan.encoders.audio_features import (
    at_positions,
    conv_frames,
    conv_positions,
    hidden_states,
    normalise,
    padded_length,
    receptive_field,
)

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@pytest.mark.parametrize("is_stable", [False, True])
def test_states_equal_those_of_the_model(is_stable: bool) -> None:
    """transformers 4.57 and 5.x agree on all but the last state of stable models, where 5.x forgets the final norm."""
    torch.manual_seed(0)
    config = tiny_wav2vec2_config(do_stable_layer_norm=is_stable, feat_extract_norm="layer" if is_stable else "group",
                                  conv_bias=is_stable, mask_time_prob=0.0, attn_implementation="sdpa")
    model = Wav2Vec2Model(config).eval().requires_grad_(False)
    waveform = normalise(value("loop", (8000,)))
    expected = model(waveform[None], output_hidden_states=True)
    states = hidden_states(model, waveform, None)
    assert states.shape == (24, 3, 32)
    for index in range(2):
        assert torch.equal(states[:, index], expected.hidden_states[index][0])
    assert torch.equal(states[:, -1], expected.last_hidden_state[0])


def test_normalising_is_the_feature_extractors() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    sound = value("loud", (5000,)) * 0.2 + 0.1
    expected = Wav2Vec2FeatureExtractor()(sound.numpy(), sampling_rate=16_000, return_tensors="pt").input_values[0]
    torch.testing.assert_close(normalise(sound), expected, atol=1e-6, rtol=0)
    assert torch.equal(normalise(torch.zeros(500)), torch.zeros(500))


def test_convolutions_see_400_samples_every_320() -> None:
    assert receptive_field(KERNELS, STRIDES) == 400
    assert [conv_frames(samples, KERNELS, STRIDES) for samples in (399, 400, 719, 720, 16_000, 80_000)] \
        == [0, 1, 1, 2, 49, 249]


def test_at_25_fps_every_second_convolution_frame_is_taken() -> None:
    assert conv_positions(4, 25, 320) == [0, 2, 4, 6]
    assert padded_length(108, 25, KERNELS, STRIDES) == 108 * 640
    features = value("conv", (1, 215, 4))
    assert torch.equal(at_positions(features, conv_positions(108, 25, 320)), features[:, ::2])


@pytest.mark.parametrize("fps", [8, 15, 16, 23.976, 24, 25, 29.97, 30, 50, 60, 120])
def test_padding_reaches_what_the_last_frame_looks_at(fps: float) -> None:
    for frames in (1, 2, 3, 7, 81):
        samples = padded_length(frames, fps, KERNELS, STRIDES)
        assert conv_frames(samples, KERNELS, STRIDES) - 1 >= conv_positions(frames, fps, 320)[-1]
        assert samples >= frames * 16_000 / as_fraction(fps)


def test_positions_of_ntsc_rates_do_not_drift() -> None:
    assert conv_positions(30_001, 29.97, 320)[-1] == Fraction(50 * 1001)


def test_between_two_frames_the_mean_is_weighted() -> None:
    features = torch.tensor([[[0.0], [10.0], [30.0]]])
    positions = [Fraction(0), Fraction(1, 4), Fraction(3, 2), Fraction(2)]
    assert at_positions(features, positions).flatten().tolist() == [0.0, 2.5, 20.0, 30.0]
