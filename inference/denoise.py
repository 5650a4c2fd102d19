"""Noise to latents: a solver over a guided velocity, with given frames kept and progress shown."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from common.progress import progress
from inference.guidance import Guidance, Pass, Step
from inference.solvers import SCHEDULES, find_solver

PassVelocity = Callable[[Tensor, float, float, Pass], Tensor]
"""(x, sigma, timestep, pass) → velocity."""
WriteGiven = Callable[[Tensor, float], Tensor]
"""(sample, sigma) → the sample with the given frames in place, as they stand at that share of noise."""
Watch = Callable[[Step, Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """Solver, number of steps and flow shift."""

    solver: str = "unipc"
    steps: int = 50
    shift: float = 5.0


def denoise(velocity: PassVelocity, noise: Float[Tensor, "B C F H W"], sampling: Sampling, *, guidance: Guidance,
            write_given: WriteGiven | None = None, watch: Watch | None = None, description: str = "denoising"
            ) -> Float[Tensor, "B C F H W"]:
    """Integrate from `noise` to clean latents.

    `write_given` is applied before the first call of the model and after every step, as OmniAvatar does; `watch` sees
    each step's sample before that. Raises UserError as soon as a sample is not finite.
    """
    schedule = SCHEDULES[sampling.solver](sampling.steps, sampling.shift)
    bar = progress(total=sampling.steps, desc=description, unit="step")
    index = 0

    def guided(x: Tensor, sigma: float, timestep: float) -> Tensor:
        step = Step(index, sampling.steps, sigma)
        velocities = {one.name: velocity(x, sigma, timestep, one) for one in guidance.passes(step)}
        return guidance.combine(velocities, step)

    def after_step(i: int, sample: Tensor) -> Tensor | None:
        nonlocal index
        if not sample.isfinite().all():
            raise UserError(f"step {i + 1} of {sampling.steps} gave NaN or infinity. Use another --dit_dtype (bfloat16 "
                            "or float32; float16 overflows), and look at the LoRA's multiplier.")
        if watch is not None:
            watch(Step(i, sampling.steps, schedule.sigmas[i]), sample)
        index = i + 1
        bar.update()
        return None if write_given is None else write_given(sample, schedule.sigmas[i + 1])

    start = noise if write_given is None else write_given(noise, schedule.sigmas[0])
    with bar:
        return find_solver(sampling.solver)(guided, start, steps=sampling.steps, shift=sampling.shift,
                                            on_step=after_step)
