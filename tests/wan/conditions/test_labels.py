"""Two speakers told apart by rotary labels: the labels themselves, and the condition with them."""

from dataclasses import replace

import pytest
import torch

from common.errors import ConditionError
from common.features import FeatureBatch
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.frame_xattn import FrameCrossAttention, FrameCrossAttentionSettings
from wan.conditions.labels import attention_to, label, sound_positions, turn
from wan.memory.checkpointing import enable_checkpointing

GRID = (3, 2, 3)
SETTINGS = FrameCrossAttentionSettings(audio_states=3, audio_width=4, audio_hidden=16, audio_tokens=3, token_width=8,
                                       speakers="lrope")


def _condition(settings: FrameCrossAttentionSettings = SETTINGS) -> FrameCrossAttention:
    torch.manual_seed(3)
    condition = FrameCrossAttention(settings, tiny_variant())
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return condition


def _pair(rows: slice = slice(None)) -> FeatureBatch:
    """Two speakers, left and right."""
    batch = tiny_features()
    regions = torch.zeros(2, 2, 3, 4, 6)
    regions[:, 0, :, :, :2], regions[:, 1, :, :, 4:] = 1, 1
    audio = {key: tensor[rows] for key, tensor in batch.features["audio"].items()}
    other = {key: tensor.flip(0)[rows] for key, tensor in batch.features["audio"].items()}
    return FeatureBatch(features={"audio": audio}, frames=9, fps=25.0, voices=[other], regions=regions[rows])


def test_attention_to_a_place_is_the_mean_over_its_tokens_and_the_heads() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 12, 6, 4), torch.randn(2, 5, 6, 4)
    places = torch.tensor([[True, False, False, False, False], [False, True, True, False, False],
                           [False, False, False, True, True]]).expand(2, -1, -1)
    share = torch.einsum("blnk,bpnk->blnp", query, key).div(2).softmax(-1).mean(2)
    expected = torch.stack((share[..., 0], share[..., 1:3].mean(-1), share[..., 3:].mean(-1)), dim=1)
    torch.testing.assert_close(attention_to(query, key, places), expected, atol=1e-6, rtol=1e-5)


def test_a_token_is_labelled_by_what_it_looks_at_most() -> None:
    maps = torch.tensor([[[0.1, 0.5, 0.3, 0.0], [0.2, 0.1, 0.4, 0.1], [0.0, 0.2, 0.2, 0.3]]])
    torch.testing.assert_close(label(maps), torch.tensor([[20 + 4 / 3, 4.0, 24.0, 12.0]]))


def test_turning_is_by_pairs_and_depends_on_the_difference_of_positions_alone() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    at = {p: (turn(x, torch.full((1, 1), p)), turn(y, torch.full((1, 1), p))) for p in (0.0, 2.0, 5.0, 7.0)}
    torch.testing.assert_close((at[2.0][0] * at[0.0][1]).sum(), (at[7.0][0] * at[5.0][1]).sum(), atol=1e-5, rtol=1e-5)
    pair = torch.view_as_complex(x.reshape(4, 2))
    rates = torch.tensor([10000.0**-(2 * j / 8) for j in range(4)])
    expected = torch.view_as_real(pair * torch.exp(2j * rates)).flatten()
    torch.testing.assert_close(at[2.0][0].flatten(), expected, atol=1e-6, rtol=1e-5)
    assert sound_positions(2, x).tolist() == [[2, 2, 22, 22]]


def test_both_sounds_are_heard_at_once_with_labels_from_the_blocks_own_attention() -> None:
    condition = _condition().requires_grad_(False)
    state = condition.prepare(_pair(), GRID)
    dit = tiny_dit()
    tokens, inputs = dit.embed(*tiny_inputs())
    query, key = torch.randn(2, 18, 2, 16), torch.randn(2, 18, 2, 16)
    state.self_attention(1, query, key, key, inputs.forward)
    places = torch.zeros(2, 3, 6, dtype=torch.bool)
    places[:, 0, [0, 3]] = places[:, 1, [2, 5]] = places[:, 2, [1, 4]] = True  # left, right, middle
    labels = label(attention_to(query, key[:, :6], places))
    torch.testing.assert_close(state.positions[1], labels)

    found = state.after_cross_attention(1, tokens, inputs.forward) - tokens
    block, layer = condition.blocks[1], condition.blocks[1].audio_cross_attn
    queries = turn(layer.q_linear(block.norm_x(tokens)).unflatten(-1, (2, 16)), labels).unflatten(1, (3, 6))
    both = layer.kv_linear(torch.cat(state.sound, dim=2)).unflatten(-1, (2, 2, 16))
    keys, values = both.unbind(3)  # B F C N K
    keys = turn(keys.flatten(0, 1), torch.tensor([[2.0, 2, 2, 22, 22, 22]])).unflatten(0, (2, 3))
    share = torch.einsum("bfpnk,bfcnk->bfnpc", queries, keys).div(4).softmax(-1)
    expected = layer.proj(torch.einsum("bfnpc,bfcnk->bfpnk", share, values).flatten(3)).flatten(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_batch_of_two_equals_two_batches_of_one_and_checkpointing_keeps_the_gradients() -> None:
    condition = _condition()
    latents, timestep, text = tiny_inputs()

    def velocity(rows: slice, *, recompute: bool = False) -> torch.Tensor:
        dit = tiny_dit()
        if recompute:
            enable_checkpointing(dit)
        return dit(latents[rows], timestep[rows], text[rows],
                   conditions={"frame_xattn": condition.prepare(_pair(rows), GRID)})

    together = velocity(slice(0, 2))
    alone = torch.cat([velocity(slice(b, b + 1)) for b in range(2)])
    torch.testing.assert_close(alone, together, atol=5e-6, rtol=1e-5)
    parameters = list(condition.parameters())
    plain = torch.autograd.grad(together.square().mean(), parameters)
    spared = torch.autograd.grad(velocity(slice(0, 2), recompute=True).square().mean(), parameters)
    assert all(torch.equal(one, other) for one, other in zip(plain, spared, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_it_leaves_the_base_bit_equal(dtype: torch.dtype) -> None:
    dit, fresh = tiny_dit(dtype=dtype), FrameCrossAttention(SETTINGS, tiny_variant())
    heard = dit(*tiny_inputs(), conditions={"frame_xattn": fresh.prepare(_pair(), GRID)})
    assert torch.equal(heard, dit(*tiny_inputs()))


def test_other_numbers_of_speakers_are_told_apart_by_their_regions() -> None:
    condition, pair = _condition(), _pair()
    one = replace(pair, voices=(), regions=None)
    three = replace(pair, voices=[*pair.voices, pair.voices[0]], regions=torch.ones(2, 3, 3, 4, 6))
    masked = _condition(replace(SETTINGS, speakers="mask"))
    dit = tiny_dit()

    def velocities(batch: FeatureBatch) -> list[torch.Tensor]:
        return [dit(*tiny_inputs(), conditions={"c": kind.prepare(batch, GRID)}) for kind in (condition, masked)]

    assert torch.equal(*velocities(one)) and torch.equal(*velocities(three))
    assert not torch.allclose(*velocities(pair), atol=1e-3)
    with pytest.raises(ConditionError, match="speakers = 'loud' is unknown"):
        _condition(replace(SETTINGS, speakers="loud"))
