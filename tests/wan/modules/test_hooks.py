"""Every point where a condition may act: it is called, with the right shapes, and what it returns counts."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import ConditionError
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from wan.modules.hooks import ExtraTokens, Forward, HookPoints, Hooks, collect
from wan.modules.rope import grid_positions

GRID, LENGTH, DIM, BLOCKS = (3, 2, 3), 18, 32, 4


class Recorder(Hooks):
    """Notes which point was called for which block, with which shapes."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []


def test_a_state_that_overrides_nothing_is_called_at_no_point_and_changes_no_bit() -> None:
    assert collect([Hooks(), Hooks()]) == HookPoints()
    dit, inputs = tiny_dit(), tiny_inputs()
    assert torch.equal(dit(*inputs, conditions={"idle": Hooks()}), dit(*inputs))


def test_only_overridden_points_are_collected_in_the_order_of_the_conditions() -> None:
    class Before(Hooks):
        def before_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
            return tokens

    first, second = Before(), Before()
    assert collect([first, Hooks(), second]) == HookPoints(before_block=(first, second))


def test_the_forward_says_what_every_hook_may_know() -> None:
    class Reader(Recorder):
        def after_patch_embedding(self, tokens: Tensor, forward: Forward) -> Tensor:
            self.calls.append((tuple(tokens.shape), forward))
            return tokens

    reader = Reader()
    tiny_dit()(*tiny_inputs(), conditions={"reader": reader}, pass_name="unconditional")
    (shape, forward), = reader.calls
    assert shape == (2, LENGTH, DIM)
    assert forward.grid == GRID
    assert forward.video == slice(0, LENGTH)
    assert forward.pass_name == "unconditional"
    assert forward.text.shape == (2, 512, DIM)
    assert forward.time_embedding.shape == (2, 1, DIM)
    assert forward.modulation.shape == (2, 1, 6, DIM)


def test_input_channels_fill_the_place_of_channels() -> None:
    variant = tiny_variant(in_channels=36, has_image_branch=True, image_dim=20)
    dit, (latents, timestep, text) = tiny_dit(variant), tiny_inputs()
    channels, clip = torch.randn(2, 20, 3, 4, 6), torch.randn(2, 257, 20)

    class Channels(Hooks):
        def input_channels(self, latents: Tensor, forward: Forward) -> Tensor:
            assert latents.shape == (2, 16, 3, 4, 6)
            return channels

    by_hook = dit(latents, timestep, text, clip_features=clip, conditions={"image": Channels()})
    assert torch.equal(by_hook, dit(latents, timestep, text, clip_features=clip, channels=channels))


def test_added_patches_equal_a_widened_patch_embedding() -> None:
    narrow, wide = tiny_dit(), tiny_dit(tiny_variant(in_channels=33))
    own = torch.nn.functional.conv3d
    wide.load_state_dict({**narrow.state_dict(), "patch_embedding.weight": wide.patch_embedding.weight})
    weight, extra = wide.patch_embedding.weight, torch.randn(2, 17, 3, 4, 6)
    weight[:, :16] = narrow.patch_embedding.weight

    class Patches(Hooks):
        def added_patches(self, latents: Tensor, forward: Forward) -> Tensor:
            return own(extra, weight[:, 16:], stride=(1, 2, 2))

    inputs = tiny_inputs()
    torch.testing.assert_close(narrow(*inputs, conditions={"own": Patches()}), wide(*inputs, channels=extra),
                               atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("point", ["before_block", "after_cross_attention", "after_block"])
def test_hooks_around_the_parts_of_a_block_see_and_change_all_tokens(point: str) -> None:
    def act(self: Recorder, i: int, tokens: Tensor, forward: Forward) -> Tensor:
        self.calls.append((i, tuple(tokens.shape)))
        return tokens + torch.linspace(-1, 1, DIM) if i == 2 else tokens

    state = type("Acting", (Recorder,), {point: act})()
    dit, inputs = tiny_dit(), tiny_inputs()
    changed = dit(*inputs, conditions={"acting": state})
    assert state.calls == [(i, (2, LENGTH, DIM)) for i in range(BLOCKS)]
    assert not torch.allclose(changed, dit(*inputs), atol=1e-4)


def test_after_block_and_before_the_next_block_are_the_same_place() -> None:
    bias = torch.randn(DIM)

    class After(Hooks):
        def after_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
            return tokens + bias if i == 1 else tokens

    class Before(Hooks):
        def before_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
            return tokens + bias if i == 2 else tokens

    dit, inputs = tiny_dit(), tiny_inputs()
    assert torch.equal(dit(*inputs, conditions={"c": After()}), dit(*inputs, conditions={"c": Before()}))


def test_self_attention_is_read_and_nothing_changes() -> None:
    class Reader(Recorder):
        def self_attention(self, i: int, query: Tensor, key: Tensor, value: Tensor, forward: Forward) -> None:
            self.calls.append((i, *(tuple(x.shape) for x in (query, key, value))))

    reader, dit, inputs = Reader(), tiny_dit(), tiny_inputs()
    assert torch.equal(dit(*inputs, conditions={"reader": reader}), dit(*inputs))
    assert reader.calls == [(i, *[(2, LENGTH, 2, 16)] * 3) for i in range(BLOCKS)]


def test_the_term_of_cross_attention_goes_through_the_output_projection() -> None:
    class Adding(Recorder):
        def cross_attention(self, i: int, query: Tensor, forward: Forward) -> Tensor | None:
            self.calls.append((i, tuple(query.shape)))
            return torch.ones_like(query) if i == 1 else None

    state, dit, inputs = Adding(), tiny_dit(), tiny_inputs()
    changed = dit(*inputs, conditions={"c": state})
    assert state.calls == [(i, (2, LENGTH, 2, 16)) for i in range(BLOCKS)]
    assert not torch.allclose(changed, dit(*inputs), atol=1e-4)
    projection = dit.blocks[1].cross_attn.o
    projection.bias += projection.weight.sum(1)  # what a term of ones contributes
    torch.testing.assert_close(dit(*inputs), changed, atol=2e-6, rtol=1e-5)


class LastFrame(Hooks):
    """Gives the last frame of a longer clip as extra tokens at that frame's place."""

    def __init__(self, tokens: Tensor, timesteps: Tensor | None) -> None:
        self.extra = ExtraTokens(tokens, grid_positions((4, 2, 3), tokens.device)[LENGTH:], timesteps)

    def extra_tokens(self, forward: Forward) -> ExtraTokens:
        return self.extra


def test_extra_tokens_at_a_frames_place_equal_that_frame_and_are_removed_before_the_head() -> None:
    dit, (latents, timestep, text) = tiny_dit(), tiny_inputs(frames=4)
    timestep[1] = timestep[0]
    whole = dit(latents, timestep, text)
    tokens, _ = dit.embed(latents, timestep, text)
    state = LastFrame(tokens[:, LENGTH:], timestep[:1].expand(6))
    shorter = dit(latents[:, :, :3], timestep, text, conditions={"last": state})
    torch.testing.assert_close(shorter, whole[:, :, :3], atol=2e-6, rtol=1e-5)


def test_extra_tokens_without_timesteps_are_clean() -> None:
    dit, (latents, timestep, text) = tiny_dit(), tiny_inputs()
    tokens = torch.randn(2, 6, DIM)
    clean = dit(latents, timestep, text, conditions={"c": LastFrame(tokens, None)})
    assert torch.equal(clean, dit(latents, timestep, text, conditions={"c": LastFrame(tokens, torch.zeros(6))}))
    noisy = dit(latents, timestep, text, conditions={"c": LastFrame(tokens, torch.full((6,), 700.0))})
    assert not torch.allclose(clean, noisy, atol=1e-5)


def test_hooks_see_the_video_tokens_first_and_the_extra_ones_after_them() -> None:
    class Seeing(LastFrame, Recorder):
        def __init__(self, tokens: Tensor) -> None:
            LastFrame.__init__(self, tokens, None)
            self.calls = []

        def before_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
            self.calls.append((tokens.shape[1], forward.video))
            if i == 0:
                assert torch.equal(tokens[:, forward.video.stop:], self.extra.tokens)
            return tokens

    state = Seeing(torch.randn(2, 6, DIM))
    tiny_dit()(*tiny_inputs(), conditions={"c": state})
    assert state.calls == [(LENGTH + 6, slice(0, LENGTH))] * BLOCKS


def test_extra_tokens_may_stand_at_negative_positions() -> None:
    class Motion(Hooks):
        def __init__(self, frame: int) -> None:
            self.frame = frame

        def extra_tokens(self, forward: Forward) -> ExtraTokens:
            return ExtraTokens(torch.ones(2, 1, DIM), torch.tensor([[self.frame, 0, 0]]))

    dit, inputs = tiny_dit(), tiny_inputs()
    outputs = [dit(*inputs, conditions={"c": Motion(frame)}) for frame in (-3, 3)]
    assert all(output.isfinite().all() for output in outputs)
    assert not torch.allclose(*outputs, atol=1e-6)


def test_a_hook_that_returns_another_shape_is_named() -> None:
    class Cutting(Hooks):
        def after_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
            return tokens[:, 1:]

    with pytest.raises(ConditionError, match=re.escape("Cutting.after_block returned [2, 17, 32]")):
        tiny_dit()(*tiny_inputs(), conditions={"c": Cutting()})
