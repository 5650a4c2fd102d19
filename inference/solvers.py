"""Solvers of the flow ODE dx/dsigma = velocity, as plain functions of any velocity function.

`SOLVERS[name](velocity, noise, *, steps, shift, on_step=None) -> sample`; `velocity(x, sigma, timestep)` gets the
sample, the share of noise as a float, and the model's time (0...1000). `on_step(index, sample)` is called with the
sample after each step; a tensor that it returns takes the sample's place (given frames are written back that way).

UniPC and DPM++ follow Wan 2.1 (`wan/utils/fm_solvers_unipc.py`, `fm_solvers.py`): data prediction, order 2, first
order on the first and the last step, model time truncated to a whole number. With lambda = log((1-sigma)/sigma) both
integrate the linear part of the ODE exactly. Coefficients are float64 scalars.
Papers: UniPC, arXiv 2302.04867 (B(h) of the second kind); DPM-Solver++, arXiv 2211.01095 (2M).
Euler and LCM can be given the times of a distilled model in place of a number of steps (LightX2V `step_distill`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError, nearest
from common.flow import MODEL_TIME_SCALE, data_from_velocity, mix, shift_sigma
from common.seeding import generator

Velocity = Callable[[Tensor, float, float], Tensor]
OnStep = Callable[[int, Tensor], Tensor | None]
Solver = Callable[..., Tensor]

UNIPC_FIRST_SIGMA = float(np.float32(0.999))
"""Wan's table of 1000 training sigmas ends there, in float32; the rounding decides some truncated times."""


@dataclass(frozen=True)
class Schedule:
    """`sigmas`: steps + 1 values from the noisy end to 0. `timesteps`: the model's time of each step."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]


def _schedule(first: float, steps: int, shift: float, *, whole_times: bool) -> Schedule:
    if steps < 1 or shift <= 0:
        raise ConfigError(f"{steps} steps with shift {shift}: steps must be at least 1 and the shift above 0.")
    sigmas = [float(s) for s in shift_sigma(np.linspace(first, 0, steps + 1)[:-1], shift)]
    times = [float(int(MODEL_TIME_SCALE * s)) if whole_times else MODEL_TIME_SCALE * s for s in sigmas]
    return Schedule((*sigmas, 0.0), tuple(times))


def unipc_schedule(steps: int, shift: float) -> Schedule:
    """Sigmas from 0.999 before the shift, whole model times."""
    return _schedule(UNIPC_FIRST_SIGMA, steps, shift, whole_times=True)


def dpmpp_schedule(steps: int, shift: float) -> Schedule:
    """Sigmas from 1, whole model times."""
    return _schedule(1.0, steps, shift, whole_times=True)


def euler_schedule(steps: int, shift: float) -> Schedule:
    """Sigmas from 1, model time exactly 1000 * sigma (as in training)."""
    return _schedule(1.0, steps, shift, whole_times=False)


def listed_schedule(times: Sequence[float], shift: float) -> Schedule:
    """Sigmas shift(t / 1000) of the times t that a distilled model was trained at, model time exactly 1000 * sigma.

    With shift 5 the times 1000, 750, 500, 250 are sigma 1, 0.9375, 0.8333, 0.625. Source: LightX2V
    `WanStepDistillScheduler`, which picks them from 1000 shifted training sigmas.
    """
    sigmas = [float(shift_sigma(time / MODEL_TIME_SCALE, shift)) for time in times]
    return Schedule((*sigmas, 0.0), tuple(MODEL_TIME_SCALE * sigma for sigma in sigmas))


def _along(times: Sequence[float], steps: int, shift: float) -> Schedule:
    return listed_schedule(times, shift) if times else euler_schedule(steps, shift)


def _finish_step(on_step: OnStep | None, index: int, sample: Tensor) -> Tensor:
    replaced = on_step(index, sample) if on_step else None
    return sample if replaced is None else replaced


def _log_snr(sigma: float) -> float:
    """lambda = log((1 - sigma) / sigma); -inf at sigma 1, +inf at sigma 0."""
    if sigma >= 1:
        return -math.inf
    return math.inf if sigma <= 0 else math.log1p(-sigma) - math.log(sigma)


def euler(velocity: Velocity, noise: Float[Tensor, "..."], *, steps: int, shift: float,
          on_step: OnStep | None = None, times: Sequence[float] = ()) -> Float[Tensor, "..."]:
    """First-order Euler steps x += (sigma_next - sigma) * v; musubi-tuner's "vanilla", OmniAvatar's sampler.

    `times`: those of a distilled model in place of `steps`; LightX2V's way with Wan 2.2.
    """
    schedule = _along(times, steps, shift)
    sample = noise
    for i, timestep in enumerate(schedule.timesteps):
        sigma, following = schedule.sigmas[i], schedule.sigmas[i + 1]
        sample = sample + (following - sigma) * velocity(sample, sigma, timestep)
        sample = _finish_step(on_step, i, sample)
    return sample


def lcm(velocity: Velocity, noise: Float[Tensor, "..."], *, steps: int, shift: float,
        on_step: OnStep | None = None, times: Sequence[float] = (),
        fresh: Callable[[int], Tensor] | None = None) -> Float[Tensor, "..."]:
    """Each step goes to the data that the velocity points at, and back to the next sigma with fresh noise.

    x = (1 - sigma_next) * (x - sigma * v) + sigma_next * fresh(i): LightX2V's way with Wan 2.1, and how the models of
    self-forcing distillation were trained. `fresh` gives the noise of step i (default: of a fixed seed).
    """
    schedule = _along(times, steps, shift)
    sample = noise
    for i, timestep in enumerate(schedule.timesteps):
        sigma, following = schedule.sigmas[i], schedule.sigmas[i + 1]
        sample = data_from_velocity(sample, velocity(sample, sigma, timestep), sigma)
        if following > 0:
            drawn = fresh(i) if fresh else torch.randn(noise.shape, generator=generator(0, "lcm", i))
            sample = mix(sample, drawn.to(sample), following)
        sample = _finish_step(on_step, i, sample)
    return sample


def dpmpp(velocity: Velocity, noise: Float[Tensor, "..."], *, steps: int, shift: float,
          on_step: OnStep | None = None) -> Float[Tensor, "..."]:
    """DPM-Solver++ 2M in midpoint form."""
    schedule = dpmpp_schedule(steps, shift)
    sample, older, older_lambda = noise, None, 0.0
    for i, timestep in enumerate(schedule.timesteps):
        sigma, following = schedule.sigmas[i], schedule.sigmas[i + 1]
        data = data_from_velocity(sample, velocity(sample, sigma, timestep), sigma)
        here = _log_snr(sigma)
        h = _log_snr(following) - here
        slope = None
        if older is not None and following > 0:
            # The step before began at sigma 1, where lambda is infinite: its slope then counts nothing.
            slope = (h / (here - older_lambda)) * (data - older)
        target = data if slope is None else data + 0.5 * slope
        sample = (following / sigma) * sample - (1 - following) * math.expm1(-h) * target
        older, older_lambda = data, here
        sample = _finish_step(on_step, i, sample)
    return sample


@dataclass(frozen=True)
class _UniPCStep:
    """One interval of UniPC: scalars of the exponential integrator from sigma to the following sigma."""

    sigma: float
    following: float

    @property
    def h(self) -> float:
        return _log_snr(self.following) - _log_snr(self.sigma)

    def move(self, sample: Tensor, data: Tensor, correction: Tensor | None) -> Tensor:
        """First-order move plus alpha * (1 - e^-h) * correction, the weighted differences of data predictions."""
        weight = -(1 - self.following) * math.expm1(-self.h)
        moved = (self.following / self.sigma) * sample + weight * data
        return moved if correction is None else moved + weight * correction

    def corrector_weights(self, ratio: float) -> tuple[float, float]:
        """Solve [[1, 1], [ratio, 1]] rho = b for the order-2 corrector; b are the phi functions over B(h)."""
        z = -self.h
        growth = math.expm1(z)
        phi = growth / z - 1
        b1 = phi / growth
        b2 = (phi / z - 0.5) * 2 / growth
        first = (b1 - b2) / (1 - ratio)
        return first, b1 - first


def unipc(velocity: Velocity, noise: Float[Tensor, "..."], *, steps: int, shift: float,
          on_step: OnStep | None = None) -> Float[Tensor, "..."]:
    """UniPC of order 2: the new prediction first corrects the step that led here, then predicts the next."""
    schedule = unipc_schedule(steps, shift)
    sample, before, data, older = noise, noise, None, None
    last: _UniPCStep | None = None
    older_lambda = 0.0  # of `older`, the data prediction before `data`
    for i, timestep in enumerate(schedule.timesteps):
        sigma, following = schedule.sigmas[i], schedule.sigmas[i + 1]
        new = data_from_velocity(sample, velocity(sample, sigma, timestep), sigma)
        if last is not None:
            assert data is not None
            correction = 0.5 * (new - data)
            if older is not None:
                ratio = (older_lambda - _log_snr(last.sigma)) / last.h
                first, second = last.corrector_weights(ratio)
                correction = (first / ratio) * (older - data) + second * (new - data)
            sample = last.move(before, data, correction)
            older_lambda = _log_snr(last.sigma)
        older, data, before, step = data, new, sample, _UniPCStep(sigma, following)
        correction = None
        if older is not None and i < steps - 1:
            correction = 0.5 * step.h / (older_lambda - _log_snr(sigma)) * (older - data)
        sample = step.move(before, data, correction)
        last = step
        sample = _finish_step(on_step, i, sample)
    return sample


SOLVERS: dict[str, Solver] = {
    "unipc": unipc,
    "dpm++": dpmpp,
    "euler": euler,
    "vanilla": euler,
    "lcm": lcm,
}
SCHEDULES: dict[str, Callable[[int, float], Schedule]] = {
    "unipc": unipc_schedule,
    "dpm++": dpmpp_schedule,
    "euler": euler_schedule,
    "vanilla": euler_schedule,
    "lcm": euler_schedule,
}


def find_solver(name: str) -> Solver:
    """The solver called `name`; ConfigError names the nearest."""
    if name not in SOLVERS:
        raise ConfigError(f"unknown solver '{name}'{nearest(name, SOLVERS)}. Use one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]
