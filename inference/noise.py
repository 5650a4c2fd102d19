"""The noise that a video starts from, and what a solver draws on the way."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
import torch
from torch import Tensor

from common.seeding import generator
from inference.plan import Plan
from inference.segments import Segment


def noise_for(plan: Plan, segment: Segment | None = None) -> Float[Tensor, "1 16 T h w"]:
    """The starting noise of a clip, or of a chunk: drawn on the CPU in float32, so that a seed means the same anywhere.

    The stream of the clip, and of the first chunk, is torch's own for the seed, as with musubi-tuner's `--cpu_noise`
    and in ComfyUI; each later chunk has one of its own.
    """
    segment = segment or plan.segments[0]
    source = generator(plan.seed, "chunk", segment.index) if segment.index else torch.Generator().manual_seed(plan.seed)
    return torch.randn((1, *plan.shape_of(segment)), generator=source, dtype=torch.float32)


def fresh_noise(seed: int, chunk: int, shape: Sequence[int]) -> Callable[[int], Tensor]:
    """Noise that a solver draws in a step of a chunk: a stream for each, on the CPU in float32."""
    def draw(step: int) -> Tensor:
        return torch.randn(tuple(shape), generator=generator(seed, "fresh", chunk, step), dtype=torch.float32)

    return draw
