"""Picking a device."""

import pytest
import torch

from common.devices import pick_device, within_share
from common.errors import ConfigError


def test_each_process_of_a_launch_has_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (pick_device(), pick_device("cuda"), pick_device("cuda:1"), pick_device("cpu")) == (
        "cuda:3", "cuda:3", "cuda:1", "cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == "cpu"
    for name, told in (("cuda", "finds no CUDA device"), ("tpu", "unknown")):
        with pytest.raises(ConfigError, match=told):
            pick_device(name)


def test_a_limited_process_counts_on_its_share_and_no_more() -> None:
    assert within_share(130, 141, 1.0) == 130  # others use 11
    assert within_share(130, 141, 0.5) == 70
