"""Training on a small card: the same run with swapped blocks and offloaded activations, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from tests.training.runs import losses, settings
from training import train
from training.fitting import tell_need
from wan.memory.estimate import MemoryNeed


def _trained(data: Path, weights: Path, out: Path, **more: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
    train(settings(data, weights, out, max_train_steps=3, network_args=["conditions=omniavatar_add"], **more))
    return load_file(out / "t.safetensors"), losses(out)


SMALL: dict[str, dict[str, Any]] = {"full": {"gradient_checkpointing": True}, "attention": {"memory": "attention"},
                                    "some attention": {"memory": "attention:2, full"}}


@pytest.mark.parametrize("kept", SMALL)
@pytest.mark.parametrize("fp8", [False, True])
def test_swapping_and_offloading_change_no_number(talking: Path, weights: Path, tmp_path: Path, fp8: bool,
                                                  kept: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, course = _trained(talking, weights, tmp_path / "plain", fp8_base=fp8)
    with caplog.at_level("INFO"):
        small, same = _trained(talking, weights, tmp_path / "small", fp8_base=fp8,
                               gradient_checkpointing_cpu_offload=True, blocks_to_swap=3, **SMALL[kept])
    assert course == same
    assert plain.keys() == small.keys()
    assert all(torch.equal(plain[name], small[name]) for name in plain)
    told = " ".join(caplog.messages)
    assert "blocks in host memory: " in told and "page-locked host memory" in told
    assert ("self-attention of " in told) == (kept != "full")


@pytest.mark.parametrize(("more", "message"), [
    ({"blocks_to_swap": 1}, "--blocks_to_swap needs --gradient_checkpointing"),
    ({"gradient_checkpointing_cpu_offload": True},
     "--gradient_checkpointing_cpu_offload needs --gradient_checkpointing"),
    ({"blocks_to_swap": 1, "memory": "full:2,full"}, "--blocks_to_swap needs --gradient_checkpointing"),
    ({"blocks_to_swap": 1, "memory": "attention"}, "--blocks_to_swap needs --gradient_checkpointing"),
    ({"gradient_checkpointing_cpu_offload": True, "memory": "matmuls:1,full"},
     "--gradient_checkpointing_cpu_offload needs --gradient_checkpointing"),
    ({"gradient_checkpointing_cpu_offload": True, "memory": "auto"},
     "--gradient_checkpointing_cpu_offload needs --gradient_checkpointing"),
    ({"blocks_to_swap": 41, "gradient_checkpointing": True}, "--blocks_to_swap 41: this base has"),
])
def test_what_does_not_go_together_is_refused_before_weights_are_read(
        more: dict[str, Any], message: str, talking: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(settings(talking, weights, tmp_path, **more))
    assert not (tmp_path / "t.safetensors").exists()


def test_more_host_memory_than_there_is_stops_the_run() -> None:
    with pytest.raises(ConfigError, match=r"1048576.0 GiB of host memory are needed .* machine \(or container\) has "):
        tell_need(MemoryNeed(weights=0, ring=0, kept=0, host_weights=2**50, host_kept=0))
