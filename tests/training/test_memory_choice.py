"""`--memory auto`, policies and compiled blocks through whole runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from safetensors.torch import load_file
import torch

from benchmarks.preflight import Case, clip_of
from common.errors import ConfigError
from tests.training.runs import losses, settings
from training import train
from training.clips import EpochBatches
from training.config import TrainConfig
from training.estimating.memory_choice import Free, can_lie_outside, fitted, planned, refuse_moving_graphs, settle
from training.launch import base_dtype
from training.preflight import Plan
from training.processes import Processes
from training.showing import Showing
from wan.memory.estimate import Holding, memory_need
from wan.memory.fp8 import Fp8Settings
from wan.memory.fp8_model import fp8_products_everywhere
from wan.memory.planner import Step
from wan.memory.policies import parse_policies
from wan.variants import Variant, find_task

GIB = 2**30
LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
FLOAT8 = Holding(fp8=Fp8Settings(mode="tensor", computes=True))
STATIC = int(18.5 * GIB)
"""Of 14B in float8 with a LoRA of rank 32."""
OUTSIDE = {"memory": "attention", "gradient_checkpointing_cpu_offload": True}


def step_of(frames: int) -> Step:
    return Step(LARGE, (frames // 4 + 1) * 1560, compiled=True)


def choice(frames: int, gib: float, host_gib: float = 0, holding: Holding = FLOAT8) -> dict[str, Any]:
    return settle(step_of(frames), holding, STATIC, int(gib * GIB), int(host_gib * GIB))


def test_a_large_card_keeps_products_and_a_small_one_moves_blocks_out() -> None:
    roomy, middle, small = choice(81, 130), choice(81, 70), choice(81, 21)
    assert set(parse_policies(roomy["memory"], 40)) == {"matmuls", "attention"}
    assert set(parse_policies(middle["memory"], 40)) <= {"matmuls", "attention", "full"}
    assert small["memory"] == "full" and small["gradient_checkpointing_cpu_offload"] and small["blocks_to_swap"] > 20
    assert choice(25, 130) == {"memory": "none"}


@pytest.mark.parametrize("ring", [1, 2, 4])
def test_as_few_blocks_are_moved_out_as_will_do(ring: int) -> None:
    holding, room = replace(FLOAT8, ring=ring, offloads=True), 21 * GIB
    count = choice(81, 21, holding=replace(FLOAT8, ring=ring))["blocks_to_swap"]
    assert planned(step_of(81), STATIC, replace(holding, swapped=count)) <= room
    assert planned(step_of(81), STATIC, replace(holding, swapped=count - 1)) > room
    seen = planned(step_of(81), STATIC, replace(holding, attention=40)) - planned(step_of(81), STATIC, holding)
    assert seen == step_of(81).unit, "what the attention of the block before gave"


def test_a_mix_fits_where_it_is_chosen() -> None:
    mix = parse_policies(choice(81, 70)["memory"], 40)
    assert planned(step_of(81), STATIC, FLOAT8, mix) <= 70 * GIB < planned(step_of(81), STATIC, FLOAT8, ["none"] * 40)


def test_attention_waits_in_host_memory_where_that_spares_computing_it_again() -> None:
    assert choice(81, 40, 64) == OUTSIDE, "in place of attention kept in some blocks"
    assert "blocks_to_swap" not in choice(81, 40) and "full" in choice(81, 40)["memory"]
    small = choice(81, 21, 64)
    assert small == {**OUTSIDE, "blocks_to_swap": small["blocks_to_swap"]}
    assert small["blocks_to_swap"] > choice(81, 21)["blocks_to_swap"]
    assert choice(81, 70, 200) == choice(81, 70), "all attention stays on the GPU"


def test_attention_of_few_blocks_is_sooner_computed_again() -> None:
    recomputed = {parse_policies(choice(81, gib, 64)["memory"], 40).count("full") for gib in range(40, 60)}
    assert max(recomputed) <= 5 and len(recomputed - {0}) > 0
    assert choice(81, 45, 64) == OUTSIDE != choice(81, 45)


def test_pictures_and_the_shortest_clips_do_not_go_to_host_memory() -> None:
    assert "gradient_checkpointing_cpu_offload" not in choice(1, 19.5, 200) and "full" in choice(1, 19.5, 200)["memory"]
    assert choice(17, 21, 200)["memory"] == "attention", "7800 tokens do"


@pytest.mark.parametrize(("holding", "gib", "needed"), [(FLOAT8, 40, 24.5), (FLOAT8, 21, 32.5),
                                                        (Holding(torch.float32), 40, 48.7)], ids=str)
def test_what_waits_in_host_memory_fits_there(holding: Holding, gib: float, needed: float) -> None:
    """To the byte what the run will lock."""
    found = choice(81, gib, 64, holding)
    moved = replace(holding, swapped=found.get("blocks_to_swap", 0), offloads=True, attention=40)
    locked = memory_need(LARGE, moved, 32760).host
    assert locked / GIB == pytest.approx(needed, abs=1.5)
    assert choice(81, gib, locked / GIB, holding) == found
    assert choice(81, gib, (locked - 4096) / GIB, holding) == choice(81, gib, holding=holding) != found


@pytest.mark.parametrize(("can", "more"), [
    (True, {"mixed_precision": "bf16"}), (True, {"mixed_precision": "bf16", "attn_mode": "fa4"}),
    (False, {"mixed_precision": "no"}), (False, {"mixed_precision": "bf16", "attn_mode": "flash3"}),
    (False, {"mixed_precision": "bf16", "compile_mode": "reduce-overhead"})])
def test_attention_can_wait_there_with_these(talking: Path, weights: Path, tmp_path: Path, can: bool,
                                             more: dict[str, Any]) -> None:
    config = settings(talking, weights, tmp_path, memory="auto", **more)
    assert can_lie_outside(config, base_dtype(config.speed, torch.device("cuda"))) == can


@pytest.mark.parametrize(("more", "host", "memory"), [
    ({}, 4 * GIB, "attention"), ({}, 0, "attention:6,full"), ({"attn_mode": "flash3"}, 4 * GIB, "attention:6,full"),
    ({"compile_mode": "reduce-overhead"}, 4 * GIB, "attention:6,full")], ids=str)
def test_a_run_is_fitted_to_its_gpu_and_its_host(tmp_path: Path, more: dict[str, Any], host: int, memory: str) -> None:
    small = Variant(dim=512, ffn_dim=1024, layers=16, heads=8, in_channels=16, out_channels=16, text_dim=64)
    config = TrainConfig.from_flags(dataset_config=tmp_path / "none.toml", dit=tmp_path, output_dir=tmp_path,
                                    task="t2v-1.3B", network_dim=4, mixed_precision="bf16", memory="auto",
                                    compile="on", **more)
    clip = clip_of(Case("", fp8=False, checkpointing=True, frames=81, steps=1), tmp_path, small.text_dim)
    plan = Plan(task=find_task("t2v-1.3B"), variant=small, arguments={}, conditions={}, dataset=cast("Any", None),
                clips=[clip], held_out=[], merge=None, start=None, is_stored_in_fp8=False, showing=Showing())
    decided = fitted(config, plan, EpochBatches(plan.clips, 0, Processes()), Free(int(2.4 * GIB), host))
    assert decided.speed.memory == memory
    assert decided.small_card.gradient_checkpointing_cpu_offload == (memory == "attention")


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
