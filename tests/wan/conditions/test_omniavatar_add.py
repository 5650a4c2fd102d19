"""OmniAvatar's audio addition: timing, places, widths, given frames, refusals."""

from dataclasses import replace
import json
import math
from pathlib import Path
import re

import pytest
import torch
from torch import Tensor

from common.errors import ConditionError
from common.features import FeatureBatch
from networks.sizes import ALWAYS_EXCLUDED, BLOCK_CLASSES
from networks.targets import Patterns, find_targets
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.omniavatar_add import AudioPack, OmniAvatarAdd, OmniAvatarSettings
from wan.conditions.registry import build_condition
from wan.modules.dit import WanDiT
from wan.modules.hooks import ExtraTokens, Forward, Hooks
from wan.variants import Variant

GRID = (3, 2, 3)
SETTINGS = OmniAvatarSettings(audio_hidden=8, audio_states=3, audio_width=4)
LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
SMALL = Variant(dim=1536, ffn_dim=8960, layers=30, heads=12, in_channels=16, out_channels=16, text_dim=4096)


def _condition(layers: int = 4) -> OmniAvatarAdd:
    torch.manual_seed(3)
    condition = OmniAvatarAdd(SETTINGS, tiny_variant(layers=layers)).requires_grad_(False)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return condition


def _audio(batch: FeatureBatch, states: Tensor) -> FeatureBatch:
    return replace(batch, features={**batch.features, "audio": {"states": states}})


def test_speech_is_grouped_as_the_vae_groups_frames() -> None:
    pack = AudioPack(audio_dim=1, hidden=4)
    pack.proj.weight.data.copy_(torch.eye(4))
    pack.proj.bias.data.zero_()
    pack.norm_out = torch.nn.Identity()  # type: ignore[assignment]
    frames = torch.arange(9.0)[None, :, None]
    assert pack(frames)[0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(("layers", "hearing"), [(4, [2]), (6, [2, 3]), (12, [2, 3, 4, 5, 6])])
def test_blocks_2_to_half_the_depth_hear(layers: int, hearing: list[int]) -> None:
    state = _condition(layers).prepare(tiny_features(), GRID)
    tokens = torch.zeros(2, 18, 32)
    forward = tiny_dit(tiny_variant(layers=layers)).embed(*tiny_inputs())[1].forward
    changed = [i for i in range(layers) if not torch.equal(state.before_block(i, tokens, forward), tokens)]
    assert changed == hearing


@pytest.mark.parametrize(("variant", "name", "hearing"), [(LARGE, "14B", 19), (SMALL, "1.3B", 14)])
def test_parameters_have_the_names_and_shapes_of_the_released_files(shared: Path, variant: Variant, name: str,
                                                                    hearing: int) -> None:
    tensors = json.loads((shared / "manifests" / f"omniavatar_{name}_exp.json").read_text())["tensors"]
    expected = {key: shape for key, (shape, _) in tensors.items() if not key.startswith("blocks.")}
    with torch.device("meta"):
        condition = OmniAvatarAdd(OmniAvatarSettings(), variant)
    assert len(condition.audio_cond_projs) == hearing
    assert {key: list(value.shape) for key, value in condition.state_dict().items()} == expected


@pytest.mark.parametrize(("variant", "name", "total"), [(LARGE, "14B", 618_684_512), (SMALL, "1.3B", 177_271_392)])
def test_the_condition_with_a_lora_of_rank_128_is_the_released_file(shared: Path, variant: Variant, name: str,
                                                                    total: int) -> None:
    with torch.device("meta"):
        condition = OmniAvatarAdd(OmniAvatarSettings(), variant)
        dit = WanDiT(variant)
    pairs = {}
    for path, layer in find_targets(dit, BLOCK_CLASSES, Patterns(always_excluded=ALWAYS_EXCLUDED)).items():
        pairs[f"{path}.lora_A.default.weight"] = [128, layer.in_features]
        pairs[f"{path}.lora_B.default.weight"] = [layer.out_features, 128]
    found = pairs | {key: list(value.shape) for key, value in condition.state_dict().items()}
    published = json.loads((shared / "manifests" / f"omniavatar_{name}_exp.json").read_text())["tensors"]
    assert found == {key: shape for key, (shape, _) in published.items()}
    assert sum(math.prod(shape) for shape in found.values()) == total


def test_a_residual_reaches_all_tokens_of_its_latent_frame_and_no_extra_ones() -> None:
    state = _condition().prepare(tiny_features(), GRID)

    class Extra(Hooks):
        def extra_tokens(self, forward: Forward) -> ExtraTokens:
            return ExtraTokens(torch.zeros(2, 5, 32), torch.zeros(5, 3, dtype=torch.long))

    tokens, inputs = tiny_dit().embed(*tiny_inputs(), conditions={"extra": Extra()})
    added = state.before_block(2, tokens, inputs.forward) - tokens
    assert added.shape == (2, 23, 32)
    assert not added[:, 18:].any()
    expected = state.residuals[:, 0].repeat_interleave(6, dim=1)
    torch.testing.assert_close(added[:, :18], expected, atol=1e-6, rtol=1e-5)


def test_sound_of_one_frame_changes_only_the_latent_frame_that_covers_it() -> None:
    condition, batch = _condition(), tiny_features()
    before = condition.prepare(batch, GRID).residuals
    states = batch.features["audio"]["states"].clone()
    states[:, 5] += 1
    after = condition.prepare(_audio(batch, states), GRID).residuals
    changed = (after != before).any(dim=3).any(dim=1).any(dim=0)
    assert changed.tolist() == [False, False, True]


def test_a_still_first_frame_has_no_sound_of_its_own() -> None:
    condition, batch = _condition(), tiny_features()
    states = batch.features["audio"]["states"].clone()
    states[0, 0] = 0
    still = replace(batch, first_is_still=torch.tensor([True, False]))
    assert torch.equal(condition.prepare(still, GRID).residuals,
                       condition.prepare(_audio(batch, states), GRID).residuals)


def test_channels_are_the_reference_in_every_frame_and_a_mask_that_is_0_where_frames_are_given() -> None:
    batch = tiny_features()
    state = _condition().prepare(batch, GRID)
    reference = batch.features["reference_latents"]["latents"]
    assert torch.equal(state.channels[:, :16], reference.expand(-1, -1, 3, -1, -1))
    assert state.channels[:, 16].amax((0, 2, 3)).tolist() == [0, 1, 1]
    assert state.given is not None and state.given.mode == "clean_same_t"
    assert state.given.latents is batch.given_latents


def test_speakers_and_silence_are_added_by_their_share_of_each_token() -> None:
    condition, batch = _condition(), tiny_features()
    other = {"states": torch.randn(2, 9, 3, 4)}
    regions = torch.zeros(2, 2, 3, 4, 6)
    regions[:, 0, :, :, :2], regions[:, 1, :, :, 2:4] = 1, 0.25
    state = condition.prepare(replace(batch, voices=[other], regions=regions), GRID)
    tokens, inputs = tiny_dit().embed(*tiny_inputs())
    added = (state.before_block(2, tokens, inputs.forward) - tokens).reshape(2, *GRID, -1)

    def alone(states: Tensor) -> Tensor:
        return condition.prepare(_audio(batch, states), GRID).residuals[:, 0, :, None]

    first, second = alone(batch.features["audio"]["states"]), alone(other["states"])
    silent = alone(torch.zeros(2, 9, 3, 4))
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(added[:, :, :, 0], first.expand(-1, -1, 2, -1), **close)
    torch.testing.assert_close(added[:, :, :, 1], (0.25 * second + 0.75 * silent).expand(-1, -1, 2, -1), **close)
    torch.testing.assert_close(added[:, :, :, 2], silent.expand(-1, -1, 2, -1), **close)


def test_overlapping_speakers_share_a_token() -> None:
    condition, batch = _condition(), tiny_features()
    both = replace(batch, voices=[batch.features["audio"]], regions=torch.ones(2, 2, 3, 4, 6))
    tokens, inputs = tiny_dit().embed(*tiny_inputs())
    found = [condition.prepare(one, GRID).before_block(2, tokens, inputs.forward) for one in (batch, both)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_without_given_frames_everything_is_to_be_generated() -> None:
    state = _condition().prepare(replace(tiny_features(), given_latents=None, given_mask=None), GRID)
    assert state.given is None
    assert state.channels[:, 16].min() == 1


@pytest.mark.parametrize(("feature", "tensors", "message"), [
    ("audio", {"states": torch.zeros(2, 8, 3, 4)}, "[8, 3, 4] (frames, states, width); expected [9, 3, 4]"),
    ("audio", {"states": torch.zeros(2, 9, 13, 768)}, "[9, 13, 768] (frames, states, width); expected [9, 3, 4]"),
    ("reference_latents", {"latents": torch.zeros(2, 16, 1, 4, 8)}, "[1, 4, 8]; expected [1, 4, 6]"),
])
def test_features_of_another_clip_or_encoder_are_refused(feature: str, tensors: dict, message: str) -> None:
    batch = tiny_features()
    with pytest.raises(ConditionError, match=re.escape(message)):
        _condition().prepare(replace(batch, features={**batch.features, feature: tensors}), GRID)


def test_a_model_too_shallow_to_hear_is_refused() -> None:
    with pytest.raises(ConditionError, match="at least 4"):
        OmniAvatarAdd(SETTINGS, tiny_variant(layers=3))


def test_an_unknown_condition_names_the_nearest() -> None:
    with pytest.raises(ConditionError, match="nearest: 'omniavatar_add'"):
        build_condition("omniavatar", {}, tiny_variant())
