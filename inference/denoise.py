"""Noise to latents: a solver over a guided velocity, with given frames kept and progress shown."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from common.errors import UserError
from common.progress import progress
from inference.guidance import Guidance, Pass, Step
from inference.solvers import SCHEDULES, Schedule, find_solver, listed_schedule

PassVelocity = Callable[[Tensor, float, float, Pass], Tensor]
"""(x, sigma, timestep, pass) → velocity."""
WriteGiven = Callable[[Tensor, float], Tensor]
"""(sample, sigma) → the sample with the given frames in place, as they stand at that share of noise."""
Watch = Callable[[Step, Tensor], None]
FreshNoise = Callable[[int], Tensor]
"""step → noise of the sample's shape, for solvers that draw in every step."""


@dataclass(frozen=True)
class Sampling:
    """Solver, number of steps and flow shift."""

    solver: str = "unipc"
    steps: int = 50
    shift: float = 5.0
    times: tuple[float, ...] = ()
    """Times before the shift, as many as `steps`, for a model that was distilled to these (Euler and LCM)."""

    @property
    def schedule(self) -> Schedule:
        """Sigmas and model times of the steps."""
        return listed_schedule(self.times, self.shift) if self.times else SCHEDULES[self.solver](self.steps, self.shift)


def denoise(velocity: PassVelocity, noise: Float[Tensor, "B C F H W"], sampling: Sampling, *, guidance: Guidance,
            write_given: WriteGiven | None = None, watch: Watch | None = None, fresh: FreshNoise | None = None,
            description: str = "denoising") -> Float[Tensor, "B C F H W"]:
    """Integrate from `noise` to clean latents.

    `write_given` is applied before the first call of the model and after every step, as OmniAvatar does; `watch` sees
    each step's sample before that; `fresh` is for the solver `lcm`. Raises UserError where a sample is not finite. That
    is read from the device a step later, when the next one's work is queued, so that the device does not wait for us.
    """
    schedule = sampling.schedule
    bar = progress(total=sampling.steps, desc=description, unit="step")
    index = 0
    unread: tuple[int, Tensor] | None = None

    def guided(x: Tensor, sigma: float, timestep: float) -> Tensor:
        step = Step(index, sampling.steps, sigma)
        velocities = {one.name: velocity(x, sigma, timestep, one) for one in guidance.passes(step)}
        return guidance.combine(velocities, step)

    def after_step(i: int, sample: Tensor) -> Tensor | None:
        nonlocal index, unread
        is_finite = sample.isfinite().all()
        _refuse_nan(unread, sampling.steps)
        unread = (i, is_finite)
        if watch is not None:
            watch(Step(i, sampling.steps, schedule.sigmas[i]), sample)
        index = i + 1
        bar.update()
        return None if write_given is None else write_given(sample, schedule.sigmas[i + 1])

    start = noise if write_given is None else write_given(noise, schedule.sigmas[0])
    special: dict[str, Any] = {"times": sampling.times} if sampling.times else {}
    if sampling.solver == "lcm":
        special["fresh"] = fresh
    with bar:
        sample = find_solver(sampling.solver)(guided, start, steps=sampling.steps, shift=sampling.shift,
                                              on_step=after_step, **special)
        _refuse_nan(unread, sampling.steps)
    return sample


def _refuse_nan(unread: tuple[int, Tensor] | None, steps: int) -> None:
    """UserError where the sample of a step was not finite; waits for that step."""
    if unread is not None and not unread[1]:
        raise UserError(f"step {unread[0] + 1} of {steps} gave NaN or infinity. Use another --dit_dtype (bfloat16 or "
                        "float32; float16 overflows), and look at the LoRA's multiplier.")
