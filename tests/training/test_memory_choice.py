"""`--memory auto`, policies and compiled blocks through whole runs."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from tests.training.runs import losses, settings
from training import train
from training.estimating.memory_choice import planned, refuse_moving_graphs, settle
from wan.memory.fp8_model import fp8_products_everywhere
from wan.memory.planner import Step
from wan.memory.policies import parse_policies
from wan.variants import Variant

GIB = 2**30
LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
STATIC, BLOCK = int(18.5 * GIB), int(0.34 * GIB)
"""Of 14B in float8 with a LoRA of rank 32."""


def choice(frames: int, gib: float, host_gib: float = 0) -> dict[str, Any]:
    step = Step(LARGE, (frames // 4 + 1) * 1560, compiled=True)
    return settle(step, STATIC, int(gib * GIB), BLOCK, int(host_gib * GIB))


def test_a_large_card_keeps_products_and_a_small_one_moves_blocks_out() -> None:
    roomy, middle, small = choice(81, 130), choice(81, 70), choice(81, 21)
    assert set(parse_policies(roomy["memory"], 40)) == {"matmuls", "attention"}
    assert set(parse_policies(middle["memory"], 40)) <= {"matmuls", "attention", "full"}
    assert small["memory"] == "full" and small["gradient_checkpointing_cpu_offload"] and small["blocks_to_swap"] > 20
    assert choice(25, 130) == {"memory": "none"}


def test_as_few_blocks_are_moved_out_as_will_do() -> None:
    step, room = Step(LARGE, 32760, compiled=True), 21 * GIB
    count = choice(81, 21)["blocks_to_swap"]
    assert planned(step, STATIC, BLOCK, swapped=count, offloads=True) <= room
    assert planned(step, STATIC, BLOCK, swapped=count - 1, offloads=True) > room
    seen = (planned(step, STATIC, BLOCK, policies=["attention"] * 40, swapped=count, offloads=True)
            - planned(step, STATIC, BLOCK, swapped=count, offloads=True))
    assert seen == step.unit, "what the attention of the block before gave"
    mix = parse_policies(choice(81, 70)["memory"], 40)
    assert planned(step, STATIC, BLOCK, policies=mix) <= 70 * GIB < planned(step, STATIC, BLOCK, policies=["none"] * 40)


def test_attention_waits_in_host_memory_where_that_spares_computing_it_again() -> None:
    outside = {"memory": "attention", "gradient_checkpointing_cpu_offload": True}
    assert choice(81, 40, 64) == outside, "in place of attention kept in some blocks"
    assert "blocks_to_swap" not in choice(81, 40) and "full" in choice(81, 40)["memory"]
    small = choice(81, 21, 64)
    assert small == {**outside, "blocks_to_swap": small["blocks_to_swap"]}
    assert small["blocks_to_swap"] > choice(81, 21)["blocks_to_swap"]
    assert choice(81, 21, 30) == choice(81, 21), "24.6 GiB of tokens and 9 of blocks are too much for 30"
    assert choice(81, 70, 200) == choice(81, 70), "all attention stays on the GPU"


def test_what_cannot_fit_says_how_much_it_needs() -> None:
    with pytest.raises(ConfigError, match=r"a step of 32760 tokens needs .* GiB with every block swapped, and 8.0"):
        choice(81, 8)


@pytest.mark.parametrize("more", [
    {"memory": "attention"}, {"memory": "matmuls:1,full"}, {"memory": "auto"},
    {"memory": "full", "blocks_to_swap": 3, "gradient_checkpointing_cpu_offload": True},
    {"memory": "none", "compile": True, "compile_backend": "aot_eager"},
    {"memory": "matmuls:2,attention", "compile": True, "compile_backend": "aot_eager"}], ids=str)
def test_a_run_learns_the_same_however_its_blocks_run(talking: Path, weights: Path, tmp_path: Path,
                                                      more: dict[str, Any]) -> None:
    common = {"max_train_steps": 3, "network_args": ["conditions=omniavatar_add"]}
    plain = load_file(train(settings(talking, weights, tmp_path / "a", **common)) or "")
    torch._dynamo.reset()
    other = load_file(train(settings(talking, weights, tmp_path / "b", **common, **more)) or "")
    assert max((plain[key] - other[key]).abs().max().item() for key in plain) <= 1e-5


def test_a_run_with_float8_products_follows_that_in_bfloat16(talking: Path, weights: Path, tmp_path: Path) -> None:
    """On a CPU, where torch forms such products too: the trainer's whole way, loss by loss with the same seed."""
    common = {"max_train_steps": 3, "mixed_precision": "bf16", "network_args": ["conditions=omniavatar_add"]}
    train(settings(talking, weights, tmp_path / "a", **common))
    with fp8_products_everywhere():
        train(settings(talking, weights, tmp_path / "b", fp8_fast=True, **common))
    plain, fast = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert len(plain) == 3 and plain != fast
    assert max(abs(other / one - 1) for one, other in zip(plain, fast, strict=True)) <= 0.02


def test_contradictions_and_missing_units_are_refused(talking: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gradient_checkpointing is --memory full"):
        settings(talking, weights, tmp_path, memory="attention", gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="activation policy 'atention' is unknown .nearest: 'attention'"):
        settings(talking, weights, tmp_path, memory="atention")
    moved = settings(talking, weights, tmp_path, memory="full", gradient_checkpointing_cpu_offload=True, compile="on")
    recorded = moved.model_copy(update={"speed": moved.speed.model_copy(update={"compile_mode": "reduce-overhead"})})
    with pytest.raises(ConfigError, match="auto has to move .*--gradient_checkpointing_cpu_offload.* Leave --comp"):
        refuse_moving_graphs(recorded)
    refuse_moving_graphs(moved)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="fp8 compute was asked, but the device is 'cpu'"):
            train(settings(talking, weights, tmp_path, fp8_fast=True))
