"""What every condition of the registry must do; a new one is tested by standing in the table."""

from dataclasses import replace
import re

import pytest
import torch
from torch import Tensor

from common.errors import ConditionError
from common.features import FeatureBatch
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from wan.conditions.base import Condition
from wan.conditions.registry import CONDITIONS, build_condition
from wan.encoders.specs import SPECS
from wan.memory.checkpointing import enable_checkpointing
from wan.modules.dit import WanDiT

GRID = (3, 2, 3)

pytestmark = pytest.mark.parametrize("name", CONDITIONS)


def _fresh(name: str) -> Condition:
    torch.manual_seed(7)
    settings = CONDITIONS[name].settings_from_features(tiny_features().features)
    return build_condition(name, settings, tiny_variant())


def _trained(name: str) -> Condition:
    condition = _fresh(name)
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
                   present={name: mask[b:b + 1] for name, mask in batch.present.items()})


def _velocity(dit: WanDiT, condition: Condition, batch: FeatureBatch, samples: slice = slice(None)) -> Tensor:
    latents, timestep, text = tiny_inputs()
    return dit(latents[samples], timestep[samples], text[samples],
               conditions={condition.name: condition.prepare(batch, GRID)})


def test_it_stands_under_its_own_name_and_reads_features_that_can_be_cached(name: str) -> None:
    kind = CONDITIONS[name]
    assert kind.name == name
    assert kind.features and set(kind.features) <= set(SPECS)
    assert set(kind.droppable) <= set(kind.features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_condition_leaves_the_output_bit_equal(name: str, dtype: torch.dtype) -> None:
    dit = tiny_dit(dtype=dtype)
    assert torch.equal(_velocity(dit, _fresh(name), tiny_features()), dit(*tiny_inputs()))


def test_trained_condition_changes_the_output(name: str) -> None:
    dit = tiny_dit()
    assert not torch.allclose(_velocity(dit, _trained(name), tiny_features()), dit(*tiny_inputs()), atol=1e-3)


def test_parameters_are_float32_and_the_state_casts_to_the_dit(name: str) -> None:
    condition = _trained(name)
    assert {parameter.dtype for parameter in condition.parameters()} == {torch.float32}
    assert _velocity(tiny_dit(dtype=torch.bfloat16), condition, tiny_features()).isfinite().all()


def test_batch_of_two_equals_two_batches_of_one_in_output_and_gradient(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), tiny_features()
    parameters = list(condition.parameters())
    together = _velocity(dit, condition, batch)
    alone = torch.cat([_velocity(dit, condition, _sample(batch, b), slice(b, b + 1)) for b in range(2)])
    torch.testing.assert_close(alone, together, atol=5e-6, rtol=1e-5)
    gradients = [torch.autograd.grad((velocity**2).mean(), parameters) for velocity in (alone, together)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_absent_feature_is_a_matter_of_the_sample(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), tiny_features()
    for feature in condition.droppable:
        mixed = replace(batch, present={feature: torch.tensor([True, False])})
        found = _velocity(dit, condition, mixed)
        with_it = _velocity(dit, condition, batch)
        torch.testing.assert_close(found[0], with_it[0], atol=5e-6, rtol=1e-5)
        assert not torch.allclose(found[1], with_it[1], atol=1e-4)

        other = {key: torch.randn_like(tensor) for key, tensor in batch.features[feature].items()}
        changed = replace(mixed, features={**batch.features, feature: other})
        assert torch.equal(_velocity(dit, condition, changed)[1], found[1])


def test_a_feature_absent_everywhere_need_not_be_loaded(name: str) -> None:
    dit, condition, batch = tiny_dit(), _trained(name), tiny_features()
    for feature in condition.droppable:
        absent = replace(batch, present={feature: torch.tensor([False, False])})
        rest = {key: tensors for key, tensors in batch.features.items() if key != feature}
        assert torch.equal(_velocity(dit, condition, replace(absent, features=rest)),
                           _velocity(dit, condition, absent))


def test_a_missing_feature_is_named(name: str) -> None:
    condition, batch = _fresh(name), tiny_features()
    for feature in condition.features:
        rest = {key: tensors for key, tensors in batch.features.items() if key != feature}
        with pytest.raises(ConditionError, match=f"'{name}' needs the feature '{feature}'"):
            condition.prepare(replace(batch, features=rest), GRID)


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


def test_settings_survive_as_text(name: str) -> None:
    condition = _fresh(name)
    text = condition.settings_text()
    assert all(isinstance(value, str) for value in text.values())
    assert type(condition).parse_settings(text) == condition.settings
    again = build_condition(name, text, tiny_variant())
    again.load_state_dict(condition.state_dict())


def test_settings_have_defaults(name: str) -> None:
    kind = CONDITIONS[name]
    assert kind.parse_settings({}) == kind.Settings()


def test_an_unknown_setting_names_the_nearest(name: str) -> None:
    kind = CONDITIONS[name]
    known = next(iter(kind.parse_settings({}).__dict__), None)
    message = f"nearest: '{known}'" if known else "It has: none"
    with pytest.raises(ConditionError, match=re.escape(message)):
        build_condition(name, {f"{known}x": "1"}, tiny_variant())
