"""How a built DiT runs its blocks: compiled or not, keeping what a policy says. Attached from outside.

One compiled function serves all blocks of a shape: a graph for each bucket and for each of training and looking. A
condition acts around a block outside of it; one that acts behind the cross-attention stands between two compiled
halves; one that acts inside an attention has its blocks run as they are, uncompiled.
"""

from collections.abc import Callable, Sequence
import functools
import time
from typing import Any

import torch
from torch import Tensor

from common.errors import ConfigError
from common.logs import get_logger
from wan.memory.compile_modes import RECORDING
from wan.memory.fp8_compute import prepare_products
from wan.memory.graphs import GraphLog, graphs_made, use_of
from wan.memory.policies import Policy, kept_by
from wan.modules.attention_halves import keeper
from wan.modules.block import PassInputs, WanAttentionBlock
from wan.modules.dit import WanDiT
from wan.modules.hooks import checked

log = get_logger(__name__)

GRAPHS = 256
"""Graphs that torch may make before it gives up compiling; two or three a bucket are needed."""


def run_blocks(dit: WanDiT, policies: Sequence[Policy], *, compiled: bool = False, backend: str = "inductor",
               mode: str | None = None, has_dropout: bool = True, graphs: GraphLog | None = None) -> "BlockRunner":
    """Have `dit` run its blocks so from now on; `stop_running_blocks` undoes it.

    `has_dropout` says whether anything in a block draws random numbers; `graphs` is told what is compiled. Raises
    ConfigError where the number of policies is not that of the blocks.
    """
    if len(policies) != len(dit.blocks):
        raise ConfigError(f"{len(policies)} activation policies for {len(dit.blocks)} blocks.")
    stop_running_blocks(dit)
    runner = BlockRunner(dit, policies, has_dropout=has_dropout, graphs=graphs)
    if compiled:
        runner.compile(backend, mode)
    dit.run_block = runner  # type: ignore[method-assign]
    return runner


def stop_running_blocks(dit: WanDiT) -> None:
    """Have `dit` run its blocks as it was built."""
    runner = vars(dit).get("run_block")
    if isinstance(runner, BlockRunner):
        runner.release()
        del dit.run_block


class BlockRunner:
    """Stands in the place of `WanDiT.run_block`."""

    def __init__(self, dit: WanDiT, policies: Sequence[Policy], *, has_dropout: bool,
                 graphs: GraphLog | None = None) -> None:
        self._dit = dit
        self.graphs = graphs or GraphLog()
        self.blocks: list[WanAttentionBlock] = [*dit.blocks]  # type: ignore[list-item]
        self.policies = list(policies)
        self.has_dropout = has_dropout
        self.is_compiled = False
        self._parts: dict[tuple[str, Policy], Callable[..., Tensor]] = {}
        self._compile: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None

    def compile(self, backend: str, mode: str | None) -> None:
        """Compile from the next block on."""
        import torch._dynamo
        import torch._functorch.config

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        torch._dynamo.config.accumulated_recompile_limit = max(
            torch._dynamo.config.accumulated_recompile_limit, 4 * GRAPHS)
        # Backward graphs are made with the forward ones, so that a failure comes where it can be met.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        options = _options(mode) if backend == "inductor" else None
        self._compile = lambda part: torch.compile(part, fullgraph=True, dynamic=False, backend=backend,
                                                   **({"options": options} if options else {"mode": mode}))
        self._parts.clear()
        self.is_compiled = True
        self.release()
        if mode in RECORDING:
            prepare_products(self._dit)
            self._dit.embed = functools.partial(_begin_pass, self._dit.embed)  # type: ignore[method-assign]

    def release(self) -> None:
        """Take off what was put on the model beside `run_block`."""
        if "embed" in vars(self._dit):
            del self._dit.embed

    def __call__(self, i: int, tokens: Tensor, inputs: PassInputs) -> Tensor:
        """Block `i` with the hooks in and around it."""
        points = inputs.points
        policy = self.policies[i] if torch.is_grad_enabled() else "none"
        if points.self_attention or points.cross_attention:
            if self.is_compiled and not self.graphs.skipped:
                log.warning("blocks run uncompiled where a condition acts inside their attention, as one does here")
            self.graphs.skipped += self.is_compiled
            return kept_by(self._whole, self._uncompiled(policy), has_dropout=self.has_dropout)(i, tokens, inputs)
        for state in points.before_block:
            tokens = self._hooked(state.before_block, state, "before_block", policy, i, tokens, inputs)
        block, bare = self.blocks[i], without_hooks(inputs)
        first, whole, seen = "attentions", "forward", tuple[Tensor, ...]()
        if keeper() is not None:  # the attention itself then stands between what is compiled
            first, whole = "after_self_attention", "rest"
            seen = (block.self_attn.look(*self._part("project", policy)(block, tokens, bare)),)
        if points.after_cross_attention:
            tokens = self._part(first, policy)(block, tokens, bare, *seen)
            for state in points.after_cross_attention:
                tokens = self._hooked(state.after_cross_attention, state, "after_cross_attention", policy, i, tokens,
                                      inputs)
            tokens = self._part("feed_forward", policy)(block, tokens, bare)
        else:
            tokens = self._part(whole, policy)(block, tokens, bare, *seen)
        for state in points.after_block:
            tokens = self._hooked(state.after_block, state, "after_block", policy, i, tokens, inputs)
        return tokens

    def _hooked(self, hook: Callable[..., Tensor], state: Any, point: str, policy: Policy, i: int, tokens: Tensor,
                inputs: PassInputs) -> Tensor:
        """What a hook makes of the tokens; computed again where the policy says so, unless it keeps next to nothing."""
        if policy in ("none", "matmuls") or state.keeps_little:
            return checked(hook(i, tokens, inputs.forward), tokens, state, point)
        return checked(kept_by(hook, "full")(i, tokens, inputs.forward), tokens, state, point)

    def _part(self, name: str, policy: Policy) -> Callable[..., Any]:
        if (name, policy) not in self._parts:
            part = kept_by(_PARTS[name], policy, has_dropout=self.has_dropout, is_traced=self._compile is not None)
            if self._compile is not None:
                plain = kept_by(_PARTS[name], self._uncompiled(policy), has_dropout=self.has_dropout)
                part = _CompiledOrNot(self._compile(part), plain, self.graphs)
            self._parts[name, policy] = part
        return self._parts[name, policy]

    def _uncompiled(self, policy: Policy) -> Policy:
        """What a block keeps that runs uncompiled; where it was to be compiled, nothing that keeps more than it would.

        Uncompiled, `matmuls` keeps twice as much, which may not fit where the compiled one was chosen to.
        """
        return "attention" if self.is_compiled and policy == "matmuls" else policy

    def _whole(self, i: int, tokens: Tensor, inputs: PassInputs) -> Tensor:
        return WanDiT.run_block(self._dit, i, tokens, inputs)


class _CompiledOrNot:
    """The compiled part; the plain one, which keeps no more, from the moment on when compiling fails: told once."""

    def __init__(self, compiled: Callable[..., Tensor], plain: Callable[..., Tensor], graphs: GraphLog) -> None:
        self._compiled, self._plain, self._graphs = compiled, plain, graphs
        self._works = True

    def __call__(self, block: WanAttentionBlock, tokens: Tensor, *more: Any) -> Any:
        if not self._works:
            return self._plain(block, tokens, *more)
        before, started = graphs_made(), time.monotonic()
        try:
            result = self._compiled(block, tokens, *more)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._works = False
            told = str(error).strip().splitlines()[0]
            self._graphs.failures.append(told)
            log.warning("a block cannot be compiled and runs uncompiled, slower and with the same numbers: %s", told)
            return self._plain(block, tokens, *more)
        if made := graphs_made() - before:
            log.info("compiled the blocks for %s in %.0f s", use_of(tokens).words, time.monotonic() - started)
        self._graphs.note(tokens, made)
        return result


def _options(mode: str | None) -> dict[str, Any]:
    """Inductor's settings: those of `mode`, and the pass that writes products' inputs in eight bits at once."""
    import torch._inductor

    from wan.memory.fp8_fusion import EightBitRows

    return {**torch._inductor.list_mode_options(mode or "default"), "post_grad_custom_post_pass": EightBitRows()}


def _begin_pass(embed: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """A pass through the model begins: what recorded blocks gave in the one before it may be overwritten.

    Nothing needs it any more: a training step has one pass forward and one back, step caches keep differences of their
    own, and the model's head is no part of a block.
    """
    torch.compiler.cudagraph_mark_step_begin()
    return embed(*inputs, **named)


def without_hooks(inputs: PassInputs) -> PassInputs:
    """What blocks share, without the conditions that act in them: the same object for every block of a forward."""
    return inputs if not any(inputs.points) else inputs.bare


def _forward(block: WanAttentionBlock, tokens: Tensor, inputs: PassInputs) -> Tensor:
    return block.feed_forward(block.attentions(0, tokens, inputs), inputs)


def _attentions(block: WanAttentionBlock, tokens: Tensor, inputs: PassInputs) -> Tensor:
    return block.attentions(0, tokens, inputs)


def _project(block: WanAttentionBlock, tokens: Tensor, inputs: PassInputs) -> tuple[Tensor, Tensor, Tensor]:
    return block.project(0, tokens, inputs)


def _after_self_attention(block: WanAttentionBlock, tokens: Tensor, inputs: PassInputs, seen: Tensor) -> Tensor:
    return block.after_self_attention(0, tokens, seen, inputs)


def _rest(block: WanAttentionBlock, tokens: Tensor, inputs: PassInputs, seen: Tensor) -> Tensor:
    return block.feed_forward(block.after_self_attention(0, tokens, seen, inputs), inputs)


def _feed_forward(block: WanAttentionBlock, tokens: Tensor, inputs: PassInputs) -> Tensor:
    return block.feed_forward(tokens, inputs)


_PARTS: dict[str, Callable[..., Any]] = {
    "forward": _forward, "attentions": _attentions, "feed_forward": _feed_forward,
    "project": _project, "after_self_attention": _after_self_attention, "rest": _rest}
