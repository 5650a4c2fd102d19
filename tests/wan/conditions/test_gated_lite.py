"""The light audio condition: where it acts, how large it is, its gates and its windows."""

from dataclasses import replace

import pytest
import torch

from common.errors import ConditionError
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.gated_lite import GatedLite, GatedLiteSettings, points_of
from wan.variants import Variant

GRID = (3, 2, 3)
SETTINGS = GatedLiteSettings(audio_states=3, audio_width=4)
LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
SMALL = Variant(dim=1536, ffn_dim=8960, layers=30, heads=12, in_channels=16, out_channels=16, text_dim=4096)


def _condition(settings: GatedLiteSettings = SETTINGS, layers: int = 4) -> GatedLite:
    torch.manual_seed(3)
    condition = GatedLite(settings, tiny_variant(layers=layers)).requires_grad_(False)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return condition


@pytest.mark.parametrize(("layers", "points"), [
    (40, (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)), (30, (0, 3, 6, 9, 12, 14, 17, 19, 21, 24, 26, 28)),
    (48, tuple(range(0, 48, 4))), (6, (0, 2, 4)), (4, (0, 2)), (3, (0,)), (1, (0,))])
def test_attentions_are_spread_over_the_depth(layers: int, points: tuple[int, ...]) -> None:
    assert points_of(layers) == points


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_a_shallow_model_hears_too(layers: int) -> None:
    dit, condition = tiny_dit(tiny_variant(layers=layers)), _condition(layers=layers)
    state = condition.prepare(tiny_features(), GRID)
    heard = dit(*tiny_inputs(), conditions={"gated_lite": state})
    assert not torch.allclose(heard, dit(*tiny_inputs()), atol=1e-3)


@pytest.mark.parametrize(("variant", "total"), [(LARGE, 105_446_791), (SMALL, 47_766_919)])
def test_the_size_is_that_of_the_parts(variant: Variant, total: int) -> None:
    """Derived from the design's shapes, part by part."""
    with torch.device("meta"):
        condition = GatedLite(GatedLiteSettings(), variant)
    dim, added = variant.dim, variant.layers // 2 - 1
    attention = 2 * 512 * dim + 2 * 512 * 768 + 2 * 128 + (dim + 1) * 64 + (64 + 1) * 3 * dim
    tokeniser = 3 * 13 + (8 * 768 + 1) * 1024 + (1024 + 1) * 8 * 768 + 2 * 768
    addition = 4 * 14 * 768 * 32 + 32 + 2 * 32 + added * 33 * dim
    assert total == 12 * attention + tokeniser + addition
    assert sum(value.numel() for value in condition.state_dict().values()) == total


def test_a_group_of_attentions_reads_its_own_mixture_of_the_layers() -> None:
    condition, batch = _condition(layers=6), tiny_features()
    assert [condition.group_of(number) for number in range(3)] == [0, 1, 2]
    condition.tokeniser.mixtures[:] = 100 * torch.eye(3)  # each group hears one state alone
    before = condition.prepare(batch, GRID).sound[0]
    audio = {key: tensor.clone() for key, tensor in batch.features["audio"].items()}
    audio["states"][:, :, 1] += 1
    after = condition.prepare(replace(batch, features={"audio": audio}), GRID).sound[0]
    assert [not torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [False, True, False]


def test_the_first_window_is_filled_up_with_zeros_in_front() -> None:
    condition = _condition()
    rows = torch.randn(1, 13, 3, 4)
    mixed = torch.einsum("gk,bmkd->gbmd", condition.tokeniser.mixtures.softmax(1), rows)[:, 0]
    window = torch.cat((torch.zeros(len(mixed), 3, 4), mixed[:, :5]), dim=1).flatten(1)
    tokeniser = condition.tokeniser
    hidden = tokeniser.up(torch.nn.functional.silu(tokeniser.down(window))).unflatten(-1, (8, 4))
    torch.testing.assert_close(tokeniser(rows)[:, 0, 0], tokeniser.norm(hidden), atol=1e-5, rtol=1e-5)


def test_the_timestep_rules_how_much_is_added() -> None:
    condition = _condition()
    state = condition.prepare(tiny_features(), GRID)
    latents, timestep, text = tiny_inputs()
    tokens, inputs = tiny_dit().embed(latents, timestep, text)
    _, later = tiny_dit().embed(latents, timestep / 2, text)
    found = [state.after_cross_attention(0, tokens, one.forward) - tokens for one in (inputs, later)]
    assert not torch.allclose(*found, atol=1e-3)
    per_token = timestep[:, None].expand(2, 18)
    _, spread = tiny_dit().embed(latents, per_token, text)
    again = state.after_cross_attention(0, tokens, spread.forward) - tokens
    torch.testing.assert_close(again, found[0], atol=1e-5, rtol=1e-5)


def test_outside_of_a_region_a_share_of_the_attention_is_left() -> None:
    condition = _condition(replace(SETTINGS, outside=0.25))
    batch = tiny_features()
    left = torch.zeros(2, 1, 3, 4, 6)
    left[..., :2] = 1
    tokens, inputs = tiny_dit().embed(*tiny_inputs())
    whole, part = (condition.prepare(one, GRID).after_cross_attention(0, tokens, inputs.forward) - tokens
                   for one in (batch, replace(batch, regions=left)))
    shares = torch.tensor([1, 0.25, 0.25])[:, None]
    torch.testing.assert_close(part.reshape(2, *GRID, -1), whole.reshape(2, *GRID, -1) * shares, atol=1e-5, rtol=1e-4)


def test_a_share_outside_of_0_to_1_is_refused() -> None:
    with pytest.raises(ConditionError, match=r"outside = 1.5; it is a share"):
        _condition(replace(SETTINGS, outside=1.5))
