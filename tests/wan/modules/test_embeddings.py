"""Time sinusoid, padded text, patches back to latents."""

import math

import pytest
import torch

from common.errors import ConditionError
from wan.modules.embeddings import Float32Linear, pad_text, timestep_sinusoid, unpatchify


def test_sinusoid_has_cosines_first_and_float64_angles() -> None:
    found = timestep_sinusoid(torch.tensor([730.25]), 256)
    angles = [730.25 * 10_000.0 ** (-k / 128) for k in range(128)]
    expected = torch.tensor([[math.cos(a) for a in angles] + [math.sin(a) for a in angles]])
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=0)
    assert timestep_sinusoid(torch.zeros(2, 5), 16).shape == (2, 5, 16)


def test_prompts_are_followed_by_zeros() -> None:
    padded = pad_text([torch.ones(2, 3), torch.ones(4, 3)], 6)
    assert padded.sum(-1).tolist() == [[3, 3, 0, 0, 0, 0], [3, 3, 3, 3, 0, 0]]
    with pytest.raises(ConditionError, match="7 tokens; the model takes 6"):
        pad_text([torch.ones(7, 3)], 6)


def test_patches_hold_the_channel_fastest() -> None:
    latents = torch.arange(2 * 3 * 2 * 4 * 6.0).reshape(2, 3, 2, 4, 6)
    tokens = torch.stack([latents[:, :, f, 2 * h:2 * h + 2, 2 * w:2 * w + 2].permute(0, 2, 3, 1).flatten(1)
                          for f in range(2) for h in range(2) for w in range(3)], dim=1)
    assert torch.equal(unpatchify(tokens, (2, 2, 3), (1, 2, 2)), latents)


def test_a_float32_linear_computes_in_float32_from_half_precision_weights() -> None:
    linear = Float32Linear(4, 2).bfloat16()
    x = torch.randn(3, 4)
    expected = x @ linear.weight.float().T + linear.bias.float()
    torch.testing.assert_close(linear(x), expected)
    assert linear(x).dtype == torch.float32
