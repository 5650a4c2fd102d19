"""What the backward pass of a block finds kept, and what it computes again: a policy for each block.

| policy | kept for the backward pass | computed again |
|---|---|---|
| none | everything | nothing |
| matmuls | products with the weights, attention | norms, modulation, rotation, GELU |
| attention | the output of self-attention | all but self-attention |
| full | the block's input | the whole block |

Numbers do not change, dropout included; compiled on a GPU with float8 products, the last bit of a norm that is computed
again may (`fp8_fusion`). Kept bytes a token and channel, 14B compiled on an H200: 41, 23.5, 4, 2
(performance notes of the project, measured); `full` is what gradient checkpointing means elsewhere.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from common.errors import ConfigError, raise_all
from common.low_rank import add_low_rank
from wan.memory.fp8_compute import fp8_product
from wan.memory.policy_names import POLICIES, Policy, policies_of, policy_problems
from wan.modules.attention_ops import fa4

SHORT_KEYS = 1000
"""Attention to fewer keys than this (text, CLIP) is cheap to compute again."""
SMALLEST_OUTPUT = 256
"""Products with fewer output channels (the low rank of a LoRA) are cheap to compute again."""

Compute = Callable[..., Tensor]
__all__ = ["POLICIES", "Policy", "kept_by", "parse_policies"]


def parse_policies(text: str, blocks: int) -> list[Policy]:
    """A policy for each of `blocks`, from ``full``, or ``matmuls:15,attention`` (the first 15 blocks, then the rest).

    Raises ConfigError for an unknown name or numbers that do not fit.
    """
    raise_all(list(policy_problems(text, blocks)), ConfigError, "--memory")
    return policies_of(text, blocks)


def kept_by(compute: Compute, policy: Policy, *, has_dropout: bool = True, is_traced: bool = False) -> Compute:
    """`compute` whose backward pass keeps what `policy` says. It must return the same when it is called again.

    `is_traced`: it will be compiled. Then `full` is said of every operation too: without that, torch 2.11 keeps what
    comes out of products with a backward pass of their own (by the peak of a run on an H200: 19 bytes a token and
    channel, not 2).
    """
    if policy == "none":
        return compute
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": has_dropout}
    if policy != "full" or is_traced:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _RULES[policy])
    return functools.partial(checkpoint, compute, **options)


def _keeps_attention(context: Any, op: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    if op in _attentions() and args[1].shape[_attentions()[op]] >= SHORT_KEYS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _keeps_matmuls(context: Any, op: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    if op in _attentions():
        return CheckpointPolicy.MUST_SAVE
    if op in _products() and _output_width(op, args) >= SMALLEST_OUTPUT:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _keeps_nothing(context: Any, op: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


_RULES: dict[str, Callable[..., CheckpointPolicy]] = {"attention": _keeps_attention, "matmuls": _keeps_matmuls,
                                                      "full": _keeps_nothing}


def _output_width(op: Any, args: Sequence[Any]) -> int:
    """Channels of a product's output: the last axis of its second factor, or the rows of a float8 weight."""
    if op is fp8_product:
        return int(args[2].shape[0])
    if op is add_low_rank:
        return int(args[0].shape[-1])
    second = args[2] if op is torch.ops.aten.addmm.default else args[1]
    return int(second.shape[-1])


@functools.cache
def _products() -> frozenset[Any]:
    aten = torch.ops.aten
    return frozenset({aten.mm.default, aten.addmm.default, fp8_product,
                      add_low_rank})


@functools.cache
def _attentions() -> dict[Any, int]:
    """Operator → axis of its second argument that counts the keys."""
    aten = torch.ops.aten
    names = ("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention",
             "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention_for_cpu",
             "_scaled_dot_product_fused_attention_overrideable")
    found = {getattr(aten, name).default: -2 for name in names if hasattr(aten, name)}
    return {**found, fa4: -3}
