"""The table of what may change between a run and its continuation, setting by setting."""

from typing import Any

import pytest

from common.config import flags_of
from training.config import TrainConfig
from training.keeping.resume import plain_values
from training.keeping.resume_rules import RULES, Rule, refusals, told


def settings() -> dict[str, Any]:
    return plain_values(TrainConfig.from_flags(dataset_config="d.toml", dit="x", output_dir="o"))


@pytest.mark.parametrize("name", [field.name for field in flags_of(TrainConfig) if not field.is_secret])
def test_a_changed_setting_is_free_told_refused_or_for_the_weights_alone(name: str) -> None:
    before = settings()
    now = before | {name: "something else"}
    rule = RULES[name]
    assert bool(refusals(before, now, weights_only=False)) == (rule in (Rule.FRESH, Rule.NEVER))
    assert bool(refusals(before, now, weights_only=True)) == (rule is Rule.NEVER)
    assert bool(told(before, now)) == (rule is Rule.TOLD)
    for line in refusals(before, now, weights_only=False) + told(before, now):
        assert f"--{name} was" in line and "something else" in line


def test_nothing_changed_is_nothing_to_say() -> None:
    assert not refusals(settings(), settings(), weights_only=False) and not told(settings(), settings())


def test_a_setting_of_another_version_counts_as_not_set() -> None:
    older = {name: value for name, value in settings().items() if name != "explosion_factor"}
    assert not refusals(older, settings(), weights_only=False)
