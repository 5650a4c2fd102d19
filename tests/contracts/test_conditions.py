"""What every condition of the registry must do; a new one is tested by standing in the table."""

from dataclasses import replace
from pathlib import Path
import re

import pytest
import torch
from torch import Tensor

from common.errors import ConditionError, NetworkFileError
from common.features import AUDIO_HALO, FeatureBatch
from common.tensorfile import save_tensors
from networks.condition_weights import condition_tensors, load_conditions
from networks.formats import read_lora
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.base import Condition
from wan.conditions.registry import CONDITIONS, build_condition
from wan.encoders.specs import SPECS
from wan.memory.checkpointing import enable_checkpointing
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.modules.dit import WanDiT
from wan.weights.dit import load_dit

GRID = (3, 2, 3)

AUDIO = [name for name, kind in CONDITIONS.items() if "audio" in kind.features]

every = pytest.mark.parametrize("name", CONDITIONS)
every_audio = pytest.mark.parametrize("name", AUDIO)


def _fresh(name: str, **changes: str) -> Condition:
    torch.manual_seed(7)
    settings = CONDITIONS[name].settings_from_features(tiny_features().features) | changes
    if name == "frame_xattn":
        settings |= {"audio_hidden": "16", "audio_tokens": "3", "token_width": "8"}
    return build_condition(name, settings, tiny_variant())


def _trained(name: str, **changes: str) -> Condition:
    condition = _fresh(name, **changes)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return condition


def _sample(batch: FeatureBatch, b: int) -> FeatureBatch:
    """The batch of sample `b` alone."""
    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[b:b + 1]
    features = {name: {key: tensor[b:b + 1] for key, tensor in tensors.items()}
                for name, tensors in batch.features.items()}
    return replace(batch, features=features, given_latents=cut(batch.given_latents), given_mask=cut(batch.given_mask),
                   present={name: mask[b:b + 1] for name, mask in batch.present.items()},
                   voices=[{key: tensor[b:b + 1] for key, tensor in voice.items()} for voice in batch.voices],
                   regions=cut(batch.regions))


def _velocity(dit: WanDiT, condition: Condition, batch: FeatureBatch, samples: slice = slice(None)) -> Tensor:
    latents, timestep, text = tiny_inputs()
    return dit(latents[samples], timestep[samples], text[samples],
               conditions={condition.name: condition.prepare(batch, GRID)})


@every
def test_it_stands_under_its_own_name_and_reads_features_that_can_be_cached(name: str) -> None:
    kind = CONDITIONS[name]
    assert kind.name == name
    assert kind.features and set(kind.features) <= set(SPECS)
    assert set(kind.droppable) | set(kind.trained_without) <= set(kind.features)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_condition_leaves_the_output_bit_equal(name: str, dtype: torch.dtype) -> None:
    dit = tiny_dit(dtype=dtype)
    assert torch.equal(_velocity(dit, _fresh(name), tiny_features()), dit(*tiny_inputs()))


@every
def test_trained_condition_changes_the_output(name: str) -> None:
    dit = tiny_dit()
    assert not torch.allclose(_velocity(dit, _trained(name), tiny_features()), dit(*tiny_inputs()), atol=1e-3)


@every
def test_parameters_are_float32_and_the_state_casts_to_the_dit(name: str) -> None:
    condition = _trained(name)
    assert {parameter.dtype for parameter in condition.parameters()} == {torch.float32}
    assert _velocity(tiny_dit(dtype=torch.bfloat16), condition, tiny_features()).isfinite().all()


@every
def test_it_runs_in_bfloat16_too(name: str) -> None:
    condition, dit = _trained(name), tiny_dit(dtype=torch.bfloat16)
    exact = _velocity(dit, condition, tiny_features())
    found = _velocity(dit, condition.to(torch.bfloat16), tiny_features())
    assert (found - exact).norm() < 0.05 * exact.norm()


@every
def test_batch_of_two_equals_two_batches_of_one_in_output_and_gradient(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), tiny_features()
    parameters = list(condition.parameters())
    together = _velocity(dit, condition, batch)
    alone = torch.cat([_velocity(dit, condition, _sample(batch, b), slice(b, b + 1)) for b in range(2)])
    torch.testing.assert_close(alone, together, atol=5e-6, rtol=1e-5)
    gradients = [torch.autograd.grad((velocity**2).mean(), parameters) for velocity in (alone, together)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@every
def test_absent_feature_is_a_matter_of_the_sample(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), tiny_features()
    for feature in (*condition.droppable, *condition.trained_without):
        mixed = replace(batch, present={feature: torch.tensor([True, False])})
        found = _velocity(dit, condition, mixed)
        with_it = _velocity(dit, condition, batch)
        torch.testing.assert_close(found[0], with_it[0], atol=5e-6, rtol=1e-5)
        assert not torch.allclose(found[1], with_it[1], atol=1e-4)

        other = {key: torch.randn_like(tensor) for key, tensor in batch.features[feature].items()}
        changed = replace(mixed, features={**batch.features, feature: other})
        assert torch.equal(_velocity(dit, condition, changed)[1], found[1])


@every
def test_a_feature_absent_everywhere_need_not_be_loaded(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), tiny_features()
    for feature in condition.droppable:
        absent = replace(batch, present={feature: torch.tensor([False, False])})
        rest = {key: tensors for key, tensors in batch.features.items() if key != feature}
        assert torch.equal(_velocity(dit, condition, replace(absent, features=rest)),
                           _velocity(dit, condition, absent))


@every
def test_a_missing_feature_is_named(name: str) -> None:
    condition, batch = _fresh(name), tiny_features()
    for feature in condition.features:
        rest = {key: tensors for key, tensors in batch.features.items() if key != feature}
        with pytest.raises(ConditionError, match=f"'{name}' needs the feature '{feature}'"):
            condition.prepare(replace(batch, features=rest), GRID)


@every
def test_every_weight_learns_from_fresh(name: str) -> None:
    dit, condition, batch = tiny_dit(), _fresh(name), tiny_features()
    start = {key: parameter.detach().clone() for key, parameter in condition.named_parameters()}
    optimizer = torch.optim.AdamW(condition.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        (_velocity(dit, condition, batch) - 1).square().mean().backward()
        optimizer.step()
    still = [key for key, parameter in condition.named_parameters() if torch.equal(parameter, start[key])]
    assert not still, f"no gradient reached {still}"


@every
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    condition, batch = _trained(name), tiny_features()
    found = []
    for recompute in (False, True):
        dit = tiny_dit()
        if recompute:
            enable_checkpointing(dit)
        loss = _velocity(dit, condition, batch).square().mean()
        found.append(torch.autograd.grad(loss, list(condition.parameters())))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@every
def test_settings_survive_as_text(name: str) -> None:
    condition = _fresh(name)
    text = condition.settings_text()
    assert all(isinstance(value, str) for value in text.values())
    assert type(condition).parse_settings(text) == condition.settings
    again = build_condition(name, text, tiny_variant())
    again.load_state_dict(condition.state_dict())


@every
def test_its_weights_go_through_a_file_and_one_in_part_is_refused(name: str, tmp_path: Path) -> None:
    condition, fresh = _trained(name), _fresh(name)
    tensors = condition_tensors({name: condition})
    save_tensors(tmp_path / "a.safetensors", tensors, {})
    assert load_conditions({name: fresh}, read_lora(tmp_path / "a.safetensors").conditions, "a") == []
    for key, tensor in condition.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], tensor), key
    key = next(iter(tensors))
    with pytest.raises(NetworkFileError, match=f"lacks {key.removeprefix(f'conditions.{name}.')}"):
        load_conditions({name: fresh}, {one: tensor for one, tensor in tensors.items() if one != key}, "a")
    with pytest.raises(NetworkFileError, match="has unknown extra"):
        load_conditions({name: fresh}, tensors | {f"conditions.{name}.extra": torch.zeros(1)}, "a")


@every
def test_settings_have_defaults(name: str) -> None:
    kind = CONDITIONS[name]
    assert kind.parse_settings({}) == kind.Settings()


@every
def test_an_unknown_setting_names_the_nearest(name: str) -> None:
    kind = CONDITIONS[name]
    known = next(iter(kind.parse_settings({}).__dict__))
    with pytest.raises(ConditionError, match=re.escape(f"nearest: '{known}'")):
        build_condition(name, {f"{known}x": "1"}, tiny_variant())


@every
def test_it_trains_on_fp8_storage_beside_a_lora_with_checkpointing(name: str, tmp_path: Path) -> None:
    save_tensors(tmp_path / "dit.safetensors", tiny_dit(dtype=torch.bfloat16).state_dict(), {})
    dit = load_dit(tmp_path / "dit.safetensors", head_dim=16, dtype=torch.bfloat16, fp8=Fp8Settings())
    assert isinstance(dit.blocks[0].self_attn.q, Fp8Linear)  # type: ignore[union-attr]
    batch = tiny_features()
    assert torch.equal(_velocity(dit, _fresh(name), batch), dit(*tiny_inputs()))
    condition = _trained(name)
    enable_checkpointing(dit)
    network = create_network(dit, dim=2, alpha=2.0, conditions={name: condition}).attach()
    torch.nn.init.normal_(next(iter(network.layers.values())).lora_up.weight)
    (_velocity(dit, condition, batch)).square().mean().backward()
    still = [key for key, one in condition.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert not still
    assert any(layer.lora_up.weight.grad is not None and layer.lora_up.weight.grad.any()
               for layer in network.layers.values())


def _two_speakers(regions: Tensor, batch: FeatureBatch | None = None) -> FeatureBatch:
    """The tiny batch with a second speaker, who says something else."""
    batch = batch or tiny_features()
    other = {key: tensor.flip(0) * 1.3 for key, tensor in batch.features["audio"].items()}
    return replace(batch, voices=[other], regions=regions)


def _halves() -> Tensor:
    """The first speaker left, the second right; latent width 6 is three tokens, so the middle one is shared."""
    regions = torch.zeros(2, 2, 3, 4, 6)
    regions[:, 0, :, :, :3] = 1
    regions[:, 1, :, :, 3:] = 1
    return regions


@every_audio
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_full_mask_is_the_single_speaker(name: str, dtype: torch.dtype) -> None:
    dit, condition, batch = tiny_dit(dtype=dtype), _trained(name), tiny_features()
    single = _velocity(dit, condition, batch)
    assert torch.equal(_velocity(dit, condition, replace(batch, regions=torch.ones(2, 1, 3, 4, 6))), single)
    alone = torch.ones(2, 2, 3, 4, 6)
    alone[:, 1] = 0
    torch.testing.assert_close(_velocity(dit, condition, _two_speakers(alone)), single, atol=1e-5, rtol=1e-5)


@every_audio
def test_batch_of_two_equals_two_of_one_with_several_speakers(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), _two_speakers(_halves())
    together = _velocity(dit, condition, batch)
    alone = torch.cat([_velocity(dit, condition, _sample(batch, b), slice(b, b + 1)) for b in range(2)])
    torch.testing.assert_close(alone, together, atol=5e-6, rtol=1e-5)


@every_audio
def test_a_speaker_changes_only_the_tokens_of_its_region(name: str) -> None:
    condition, batch = _trained(name), _two_speakers(_halves())
    if name == "gated_lite":
        condition = _trained(name, outside="0")
    louder = replace(batch, voices=[{key: 2 * tensor for key, tensor in batch.voices[0].items()}])
    changed = [_added(condition, one) for one in (batch, louder)]
    difference = (changed[0] - changed[1]).abs().amax((0, 2)).reshape(GRID) > 1e-6
    assert difference.any(0).any(0).tolist() == [False, True, True]


def _added(condition: Condition, batch: FeatureBatch, block: int | None = None) -> Tensor:
    """What the condition's state makes of tokens in a block where it acts (all of them, one after the other)."""
    dit = tiny_dit()
    tokens, inputs = dit.embed(*tiny_inputs())
    state = condition.prepare(batch, GRID)
    total = torch.zeros_like(tokens)
    for i in range(len(dit.blocks)) if block is None else [block]:
        total = total + state.before_block(i, tokens, inputs.forward) - tokens
        total = total + state.after_cross_attention(i, tokens, inputs.forward) - tokens
    return total.detach()


@every_audio
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_condition_with_several_speakers_leaves_the_output_bit_equal(name: str, dtype: torch.dtype) -> None:
    dit = tiny_dit(dtype=dtype)
    assert torch.equal(_velocity(dit, _fresh(name), _two_speakers(_halves())), dit(*tiny_inputs()))


@every_audio
def test_a_latent_frame_hears_as_far_as_the_condition_says(name: str) -> None:
    condition, batch = _trained(name), tiny_features()
    before, after = condition.hears
    assert max(before, after) <= AUDIO_HALO
    audio = batch.features["audio"]
    wide = torch.cat((audio["before"], audio["states"], audio["after"]), dim=1)
    start = _added(condition, batch).reshape(2, *GRID, -1)
    for row in range(wide.shape[1]):
        louder = wide.clone()
        louder[:, row] += 3
        parts = dict(zip(("before", "states", "after"), louder.split((2, 9, 2), dim=1), strict=True))
        changed = _added(condition, replace(batch, features={**batch.features, "audio": parts}))
        frame = row - AUDIO_HALO
        found = ((changed.reshape(2, *GRID, -1) - start).abs() > 1e-6).any(-1).any(-1).any(-1).any(0).tolist()
        own = [range(0, 1), range(1, 5), range(5, 9)]
        assert found == [frames[0] - before <= frame <= frames[-1] + after for frames in own], f"frame {frame}"


@every_audio
def test_without_rows_beside_the_clip_its_own_edge_rows_are_repeated(name: str) -> None:
    condition, batch = _trained(name), tiny_features()
    states = batch.features["audio"]["states"]
    edges = {"states": states, "before": states[:, :1].expand(-1, 2, -1, -1),
             "after": states[:, -1:].expand(-1, 2, -1, -1)}
    found = [_added(condition, replace(batch, features={**batch.features, "audio": audio}))
             for audio in ({"states": states}, edges)]
    assert torch.equal(*found)


@every_audio
def test_gain_scales_what_is_added_block_by_block(name: str) -> None:
    batch = tiny_features()
    plain = _trained(name)
    heard = plain.blocks_heard
    for gain in (0.0, 0.5):
        condition = _fresh(name, audio_gain=f"{heard[0]}:{gain}")
        condition.load_state_dict(plain.state_dict())
        for i in heard:
            expected = _added(plain, batch, i) * (gain if i == heard[0] else 1)
            torch.testing.assert_close(_added(condition, batch, i), expected, atol=2e-5, rtol=1e-4)


@every_audio
def test_absent_sound_can_be_encoded_silence(name: str) -> None:
    condition, batch = _trained(name, null="silence"), tiny_features()
    silence = torch.randn(2, 9, 3, 4)
    audio = {**batch.features["audio"], "silence": silence}
    absent = {"audio": torch.tensor([False, False])}
    found = _added(condition, replace(batch, features={**batch.features, "audio": audio}, present=absent))
    spoken = replace(batch, features={**batch.features, "audio": {"states": silence, "silence": silence}})
    assert torch.equal(found, _added(condition, spoken))
    with pytest.raises(ConditionError, match="null = silence needs the encoded silence"):
        condition.prepare(replace(batch, present=absent), GRID)


@every_audio
def test_speakers_and_regions_must_agree(name: str) -> None:
    condition, batch = _fresh(name), _two_speakers(_halves())
    with pytest.raises(ConditionError, match="2 speakers and no regions"):
        condition.prepare(replace(batch, regions=None), GRID)
    with pytest.raises(ConditionError, match=re.escape("[1, 3, 4, 6] (speakers, latent frames, height, width); "
                                                       "expected [2, 3, 4, 6]")):
        condition.prepare(replace(batch, regions=_halves()[:, :1]), GRID)
    with pytest.raises(ConditionError, match="null = 'quiet' is unknown"):
        _fresh(name, null="quiet")
