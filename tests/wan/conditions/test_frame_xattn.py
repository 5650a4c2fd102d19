"""Frame cross-attention: windows, names and shapes of the published files, and the attention by latent frame."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.frame_xattn import FrameCrossAttention, FrameCrossAttentionSettings
from wan.conditions.frames import windows
from wan.variants import Variant

GRID = (3, 2, 3)
SETTINGS = FrameCrossAttentionSettings(audio_states=3, audio_width=4, audio_hidden=16, audio_tokens=3, token_width=8)
LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=36, out_channels=16, text_dim=4096,
                has_image_branch=True, image_dim=1280)
SMALL = Variant(dim=1536, ffn_dim=8960, layers=30, heads=12, in_channels=16, out_channels=16, text_dim=4096)


def _condition() -> FrameCrossAttention:
    torch.manual_seed(3)
    condition = FrameCrossAttention(SETTINGS, tiny_variant()).requires_grad_(False)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return condition


def test_a_window_is_the_frames_4t_minus_5_to_4t_plus_2() -> None:
    frames = torch.arange(-2, 19)[None, :, None]  # 17 frames, two on each side
    first, later = windows(frames)
    assert first[0, :, :, 0].tolist() == [[-2, -1, 0, 1, 2]]
    assert later[0, :, :, 0].tolist() == [list(range(4 * t - 5, 4 * t + 3)) for t in (1, 2, 3, 4)]


def test_a_picture_has_the_first_window_alone() -> None:
    first, later = windows(torch.arange(-2, 3)[None, :, None])
    assert first.shape == (1, 1, 5, 1) and later.shape == (1, 0, 8, 1)


@pytest.mark.parametrize(("variant", "total"), [(LARGE, 2_487_168_000), (SMALL, 286_827_520)])
def test_names_shapes_and_total_are_the_published_ones(variant: Variant, total: int) -> None:
    with torch.device("meta"):
        condition = FrameCrossAttention(FrameCrossAttentionSettings(), variant)
    dim = variant.dim
    expected = {"proj1": [512, 46080], "proj1_vf": [512, 73728], "proj2": [512, 512], "proj3": [24576, 512],
                "norm": [768]}
    expected = {f"audio_proj.{name}": shape for name, shape in expected.items()}
    for i in range(variant.layers):
        expected |= {f"blocks.{i}.audio_cross_attn.q_linear": [dim, dim], f"blocks.{i}.norm_x": [dim],
                     f"blocks.{i}.audio_cross_attn.kv_linear": [2 * dim, 768],
                     f"blocks.{i}.audio_cross_attn.proj": [dim, dim]}
    with_bias = {f"{name}.weight": shape for name, shape in expected.items()}
    with_bias |= {f"{name}.bias": shape[:1] for name, shape in expected.items()}
    assert {key: list(value.shape) for key, value in condition.state_dict().items()} == with_bias
    assert sum(value.numel() for value in condition.state_dict().values()) == total


def test_the_projection_reads_a_window_row_by_row_and_state_by_state() -> None:
    condition, batch = _condition(), tiny_features()
    state = condition.prepare(batch, GRID)
    audio, proj = batch.features["audio"], condition.audio_proj
    wide = torch.cat((audio["before"], audio["states"], audio["after"]), dim=1)[:, :, 1:]  # states 1 … K-1

    def tokens(layer: torch.nn.Linear, window: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(proj.proj2(F.relu(layer(window.reshape(2, -1)))))
        return F.layer_norm(proj.proj3(hidden).reshape(2, 3, 8), (8,), proj.norm.weight, proj.norm.bias)

    expected = [tokens(proj.proj1, wide[:, :5]), tokens(proj.proj1_vf, wide[:, 1:9]),
                tokens(proj.proj1_vf, wide[:, 5:13])]
    torch.testing.assert_close(state.sound[0], torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_the_tokens_of_a_latent_frame_attend_to_the_sound_of_that_frame() -> None:
    condition = _condition()
    state = condition.prepare(tiny_features(), GRID)
    tokens, inputs = tiny_dit().embed(*tiny_inputs())
    found = (state.after_cross_attention(1, tokens, inputs.forward) - tokens).reshape(2, 3, 6, 32)
    block = condition.blocks[1]
    layer = block.audio_cross_attn
    for frame in range(3):
        x = F.layer_norm(tokens.reshape(2, 3, 6, 32)[:, frame], (32,), block.norm_x.weight, block.norm_x.bias, 1e-6)
        query = layer.q_linear(x).reshape(2, 6, 2, 16).transpose(1, 2)
        weight, bias = layer.kv_linear.weight, layer.kv_linear.bias
        sound = state.sound[0][:, frame]
        key, value = (F.linear(sound, weight[rows], bias[rows]).reshape(2, 3, 2, 16).transpose(1, 2)
                      for rows in (slice(0, 32), slice(32, 64)))
        share = (query @ key.transpose(2, 3) / 16**0.5).softmax(-1)
        expected = layer.proj((share @ value).transpose(1, 2).reshape(2, 6, 32))
        torch.testing.assert_close(found[:, frame], expected, atol=1e-4, rtol=1e-4)


def test_a_still_first_frame_is_heard_as_in_the_released_models() -> None:
    condition, batch = _condition(), tiny_features()
    still = replace(batch, first_is_still=torch.tensor([True, True]))
    assert torch.equal(condition.prepare(still, GRID).sound[0], condition.prepare(batch, GRID).sound[0])


def test_outside_of_all_regions_only_the_bias_of_the_projection_is_left() -> None:
    condition, batch = _condition(), tiny_features()
    state = condition.prepare(replace(batch, regions=torch.zeros(2, 1, 3, 4, 6)), GRID)
    tokens, inputs = tiny_dit().embed(*tiny_inputs())
    added = state.after_cross_attention(0, tokens, inputs.forward) - tokens
    bias = condition.blocks[0].audio_cross_attn.proj.bias
    torch.testing.assert_close(added, bias.expand_as(added), atol=1e-5, rtol=1e-5)
