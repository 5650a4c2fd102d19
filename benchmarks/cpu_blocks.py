"""Rows of `python -m benchmarks`: what a block keeps for its backward pass, and which graphs compiled blocks make."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import logging

import torch
from torch import Tensor, nn

from common.features import AUDIO_HALO, FeatureBatch
from networks.lora_wan import create_network
from training.estimating.live_bytes import LiveBytes
from wan.conditions.base import Condition
from wan.conditions.registry import CONDITIONS, build_condition
from wan.memory.blocks import run_blocks
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_model import use_fp8_linears
from wan.memory.policies import POLICIES, SHORT_KEYS, Policy
from wan.modules.dit import WanDiT
from wan.variants import Variant

SIZE = Variant(dim=256, ffn_dim=704, layers=4, heads=2, in_channels=16, out_channels=16, text_dim=64)
"""Feed-forward part 2.75 times as wide, about as in 14B."""
BUCKETS = ((3, 4, 6), (2, 6, 4))
"""Latent frames, height, width."""
POLICY = ["none"] * 4
AUDIO = {"audio_states": "3", "audio_width": "32"}


def make_dit(size: Variant = SIZE, *, fp8: bool = False) -> WanDiT:
    """A frozen DiT in bfloat16 with random weights; `fp8`: products in float8."""
    torch.manual_seed(0)
    dit = WanDiT(size).to(torch.bfloat16).eval().requires_grad_(False)
    if fp8:
        linears = {name: module for name, module in dit.named_modules() if isinstance(module, nn.Linear)}
        for name in use_fp8_linears(dit, Fp8Settings(mode="tensor", computes=True)):
            layer = dit.get_submodule(name)
            assert isinstance(layer, Fp8Linear)
            layer.store(linears[name].weight)
            layer.bias = linears[name].bias
    return dit


def kept_bytes(policy: Policy) -> float:
    """Bytes a token and channel that one block in bfloat16 with a LoRA keeps, its input and no weights included.

    Storages that are alive when the block has run, and were not before: saved-tensor hooks would not see what a policy
    stores by itself.
    """
    with LiveBytes() as counter:
        dit = make_dit(replace(SIZE, layers=1))
        create_network(dit, dim=16, alpha=16).attach()
        run_blocks(dit, [policy])
        height, width = 48, 2 * (SHORT_KEYS // 24 + 1)
        tokens, inputs = dit.embed(torch.randn(1, 16, 1, height, width), torch.tensor([500.0]),
                                   [torch.randn(20, SIZE.text_dim)])
        tokens = tokens.detach().requires_grad_()
        with torch.no_grad():
            dit.run_block(0, tokens, inputs)  # makes what all blocks share
        before = counter.live
        result = dit.run_block(0, tokens, inputs)
        kept = counter.live - before - _bytes(result) + _bytes(tokens)
    return kept / tokens.numel()


def kept_rows() -> list[tuple[str, float, float]]:
    """(policy, bytes a token and channel, share of what `full` keeps) of each."""
    kept = {policy: kept_bytes(policy) for policy in POLICIES}
    return [(policy, value, value / kept["full"]) for policy, value in kept.items()]


@dataclass(frozen=True)
class Graphs:
    """What compiling came to."""

    what: str
    breaks: int
    uncompiled: int
    """Parts that could not be compiled and run as they are."""
    by_bucket: tuple[int, ...]
    """Graphs that the first step of each bucket made."""
    later: int
    """Graphs that second steps made."""


def graph_rows(backend: str = "eager") -> list[Graphs]:
    """Compiled blocks under a LoRA: plain, in float8, and with each of the conditions that hear; forward and backward.

    Breaks and graphs come from tracing, which is the same for every backend; `eager` needs no compiler.
    """
    heard = [name for name, kind in CONDITIONS.items() if "audio" in kind.features]
    return [graphs_of("LoRA", backend=backend), graphs_of("LoRA, products in float8", backend=backend, fp8=True),
            *(graphs_of(f"LoRA, {name}", backend=backend, condition=name) for name in heard)]


def graphs_of(what: str, *, backend: str, fp8: bool = False, condition: str = "") -> Graphs:
    """Graphs of two steps of each bucket, one policy for all blocks."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    dit = make_dit(fp8=fp8)
    create_network(dit, dim=16, alpha=16).attach()
    built = build_condition(condition, AUDIO, SIZE).to(torch.bfloat16) if condition else None
    run_blocks(dit, POLICY, compiled=True, backend=backend, has_dropout=False)
    said = _Said()
    logging.getLogger(run_blocks.__module__).addHandler(said)
    made, later = [], 0
    for bucket in BUCKETS:
        before = counters["stats"]["unique_graphs"]
        _step(dit, built, bucket)
        made.append(counters["stats"]["unique_graphs"] - before)
    for bucket in BUCKETS:
        before = counters["stats"]["unique_graphs"]
        _step(dit, built, bucket)
        later += counters["stats"]["unique_graphs"] - before
    logging.getLogger(run_blocks.__module__).removeHandler(said)
    return Graphs(what, sum(counters["graph_break"].values()), len(said.lines), tuple(made), later)


class _Said(logging.Handler):
    """Warnings: a part that cannot be compiled is told by one and runs as it is."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take the line down."""
        self.lines.append(record.getMessage())


def _step(dit: WanDiT, condition: Condition | None, bucket: Sequence[int]) -> None:
    frames, height, width = bucket
    conditions = {}
    if condition is not None:
        conditions = {condition.name: condition.prepare(_features(bucket), (frames, height // 2, width // 2))}
    latents = torch.randn(1, 16, frames, height, width)
    velocity = dit(latents, torch.tensor([500.0]), [torch.randn(20, SIZE.text_dim)], conditions=conditions)
    velocity.float().square().mean().backward()


def _features(bucket: Sequence[int]) -> FeatureBatch:
    frames, height, width = bucket
    shown = 4 * (frames - 1) + 1
    mask = torch.zeros(1, 1, *bucket)
    mask[:, :, 0] = 1
    rows = {"states": shown, "before": AUDIO_HALO, "after": AUDIO_HALO}
    return FeatureBatch(
        features={"audio": {name: torch.randn(1, count, 3, 32) for name, count in rows.items()},
                  "reference_latents": {"latents": torch.randn(1, 16, 1, height, width)}},
        frames=shown, fps=25.0, given_latents=torch.randn(1, 16, *bucket), given_mask=mask,
        first_is_still=torch.tensor([True]))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
