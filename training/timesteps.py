"""Which noise level a training sample gets: every rule is a small function from uniforms to sigma, found by name.

sigma is the share of noise (1 = pure noise) and the model's time is 1000*sigma, exactly as when sampling. All rules
take the uniforms from outside, so that stratified draws and draws that do not depend on the number of processes cost
nothing extra. Formulas: musubi-tuner 0.3.4 (`timestep_sampling`), of which three habits are not kept: its `sigma` rule
ignores the shift and turns min/max round, and its model time is 1000*sigma + 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
import functools
import math

from jaxtyping import Float
import torch
from torch import Tensor

from common.errors import ConfigError, nearest
from common.flow import MODEL_TIME_SCALE, shift_sigma
from common.seeding import generator

GRID = 1000
"""Noise levels of the `sigma` rule: 1/1000 … 1000/1000."""

QUANTILE_CELLS = 65_536
"""Resolution, in u, of the quantile table behind `preserve_distribution_shape`."""


@dataclass(frozen=True)
class TimestepSettings:
    """How noise levels are drawn; the fields are the flags' names. Times run 0…1000, low is clean."""

    timestep_sampling: str = "sigma"
    discrete_flow_shift: float = 1.0
    sigmoid_scale: float = 1.0
    weighting_scheme: str = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: float = 0.0
    max_timestep: float = 1000.0
    preserve_distribution_shape: bool = False


LatentSize = tuple[int, int]
"""Latent height and width (video size / 8)."""
Rule = Callable[[Tensor, TimestepSettings, LatentSize], Tensor]


def normal_quantile(u: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Standard-normal quantile of u, clamped to [1e-7, 1 - 1e-7]."""
    return math.sqrt(2) * torch.erfinv(2 * u.clamp(1e-7, 1 - 1e-7) - 1)


def uniform(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """sigma = u."""
    return u


def sigmoid(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """Logit-normal: sigmoid(scale * z)."""
    return torch.sigmoid(settings.sigmoid_scale * normal_quantile(u))


def shift(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """The `sigmoid` value moved by discrete_flow_shift."""
    return shift_sigma(sigmoid(u, settings, size), settings.discrete_flow_shift)


def _shift_by_tokens(u: Tensor, settings: TimestepSettings, tokens: int, low: tuple[int, float],
                     high: tuple[int, float]) -> Tensor:
    """The `sigmoid` value moved by exp(mu), mu on the line through `low` and `high` = (tokens, mu)."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    mu = low[1] + slope * (tokens - low[0])
    return shift_sigma(torch.sigmoid(settings.sigmoid_scale * normal_quantile(u)), math.exp(mu))


def flux_shift(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """FLUX's line over 2x2 patches of one latent frame."""
    return _shift_by_tokens(u, settings, (size[0] // 2) * (size[1] // 2), (256, 0.5), (4096, 1.15))


def flux2_shift(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """FLUX's line over latent pixels."""
    return _shift_by_tokens(u, settings, size[0] * size[1], (256, 0.5), (4096, 1.15))


def qwen_shift(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """Qwen-Image's line over 2x2 patches."""
    return _shift_by_tokens(u, settings, (size[0] // 2) * (size[1] // 2), (256, 0.5), (8192, 0.9))


def krea2_shift(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """Krea 2's line over 2x2 patches."""
    return _shift_by_tokens(u, settings, (size[0] // 2) * (size[1] // 2), (256, 0.5), (6400, 1.15))


def _log_snr(u: Tensor, mean: float, std: float) -> Tensor:
    return torch.sigmoid(-(mean + std * normal_quantile(u)) / 2)


def logsnr(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """sigmoid(-g/2) with the log signal-to-noise ratio g ~ N(logit_mean, logit_std)."""
    return _log_snr(u, settings.logit_mean, settings.logit_std)


def ideogram4_shift(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """Logit-normal in float64 with mean half the log of 256*h*w over 512x512, deviation 1.5; log-SNR within -18…15."""
    mean = 0.5 * math.log(size[0] * size[1] * 256 / 512**2)
    return torch.sigmoid((mean + 1.5 * normal_quantile(u.double())).clamp(-7.5, 9.0)).to(u.dtype)


def _mixture(u: Tensor, parts: list[tuple[float, Callable[[Tensor], Tensor]]]) -> Tensor:
    """Each part takes its share of [0, 1] and stretches it to a uniform of its own: one draw, exact shares."""
    sigma, start = torch.zeros_like(u), 0.0
    for share, rule in parts:
        inside = (u >= start) & ((u < start + share) | (start + share > 1 - 1e-9))
        sigma = torch.where(inside, rule(((u - start) / share).clamp(0, 1)), sigma)
        start += share
    return sigma


def qinglong_flux(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """79 % flux_shift, 11 % logsnr(logit_mean, logit_std), 10 % logsnr(5.36, 1), the clean end."""
    return _mixture(u, [(0.79, lambda v: flux_shift(v, settings, size)),
                        (0.11, lambda v: logsnr(v, settings, size)),
                        (0.10, lambda v: _log_snr(v, 5.36, 1.0))])


def qinglong_qwen(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """95 % qwen_shift, 5 % logsnr(5.36, 1)."""
    return _mixture(u, [(0.95, lambda v: qwen_shift(v, settings, size)), (0.05, lambda v: _log_snr(v, 5.36, 1.0))])


def logit_normal(z: Tensor, mean: float, std: float) -> Tensor:
    """Density `logit_normal` of the `sigma` rule, from a standard normal."""
    return torch.sigmoid(std * z + mean)


def mode_density(u: Tensor, scale: float) -> Tensor:
    """Density `mode` of Stable Diffusion 3: 1 - u - s(cos^2(pi u/2) - 1 + u)."""
    return 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)


def grid_sigma(x: Float[Tensor, " B"], settings: TimestepSettings) -> Float[Tensor, " B"]:
    """Level of the (shifted) grid of 1000 at the share x of the allowed part, x = 0 being its noisy end.

    Allowed are the levels whose time lies in (min_timestep, max_timestep].
    """
    unshift = 1 / settings.discrete_flow_shift  # the shift by 1/S undoes the shift by S
    low = GRID * shift_sigma(settings.min_timestep / MODEL_TIME_SCALE, unshift)
    high = GRID * shift_sigma(settings.max_timestep / MODEL_TIME_SCALE, unshift)
    first = math.ceil(GRID - high - 1e-6)
    last = max(first, math.ceil(GRID - low - 1e-6) - 1)
    index = (x * (high - low) + (GRID - high)).floor().clamp(first, last)
    return shift_sigma((GRID - index) / GRID, settings.discrete_flow_shift)


def sigma(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """A level of the shifted grid of 1000, with the density of weighting_scheme (logit_normal, mode; else flat)."""
    if settings.weighting_scheme == "logit_normal":
        x = logit_normal(normal_quantile(u), settings.logit_mean, settings.logit_std)
    elif settings.weighting_scheme == "mode":
        x = mode_density(u, settings.mode_scale)
    else:
        x = u
    return grid_sigma(x, settings)


@dataclass(frozen=True)
class RuleEntry:
    """A rule with the settings that it reads besides min_timestep and max_timestep."""

    rule: Rule
    reads: frozenset[str] = field(default_factory=frozenset)


def _entry(rule: Rule, *reads: str) -> RuleEntry:
    return RuleEntry(rule, frozenset(reads))


RULES: Mapping[str, RuleEntry] = {
    "sigma": _entry(sigma, "discrete_flow_shift", "logit_mean", "logit_std", "mode_scale"),
    "uniform": _entry(uniform),
    "sigmoid": _entry(sigmoid, "sigmoid_scale"),
    "shift": _entry(shift, "discrete_flow_shift", "sigmoid_scale"),
    "flux_shift": _entry(flux_shift, "sigmoid_scale"),
    "flux2_shift": _entry(flux2_shift, "sigmoid_scale"),
    "ideogram4_shift": _entry(ideogram4_shift),
    "qwen_shift": _entry(qwen_shift, "sigmoid_scale"),
    "krea2_shift": _entry(krea2_shift, "sigmoid_scale"),
    "logsnr": _entry(logsnr, "logit_mean", "logit_std"),
    "qinglong_flux": _entry(qinglong_flux, "sigmoid_scale", "logit_mean", "logit_std"),
    "qinglong_qwen": _entry(qinglong_qwen, "sigmoid_scale"),
}


def check_settings(settings: TimestepSettings) -> None:
    """ConfigError when the rule is unknown, the range is empty or the shift is not positive."""
    if settings.timestep_sampling not in RULES:
        raise ConfigError(f"timestep_sampling '{settings.timestep_sampling}' is unknown"
                          f"{nearest(settings.timestep_sampling, RULES)}. It is one of {', '.join(RULES)}.")
    low, high = settings.min_timestep, settings.max_timestep
    if not 0 <= low < high <= MODEL_TIME_SCALE:
        raise ConfigError(f"min_timestep {low:g} and max_timestep {high:g}: expected 0 <= min < max <= 1000 "
                          "(0 is clean, 1000 is pure noise).")
    if settings.discrete_flow_shift <= 0:
        raise ConfigError(f"discrete_flow_shift {settings.discrete_flow_shift:g} must be above 0 (1 = no shift).")


def unread_settings(settings: TimestepSettings) -> list[str]:
    """Names of settings that differ from their default and that the chosen rule does not read."""
    default = TimestepSettings()
    names = ("discrete_flow_shift", "sigmoid_scale", "logit_mean", "logit_std", "mode_scale")
    reads = RULES[settings.timestep_sampling].reads
    return [name for name in names if name not in reads and getattr(settings, name) != getattr(default, name)]


@functools.lru_cache(maxsize=64)
def _allowed_cells(settings: TimestepSettings, size: LatentSize) -> Tensor:
    """Indices of the cells of u whose sigma lies in the range, ascending."""
    whole = replace(settings, min_timestep=0.0, max_timestep=float(MODEL_TIME_SCALE))
    middle = (torch.arange(QUANTILE_CELLS, dtype=torch.float64) + 0.5) / QUANTILE_CELLS
    time = MODEL_TIME_SCALE * RULES[settings.timestep_sampling].rule(middle, whole, size)
    cells = torch.nonzero((time >= settings.min_timestep) & (time <= settings.max_timestep))[:, 0]
    if not len(cells):
        raise ConfigError(f"preserve_distribution_shape: '{settings.timestep_sampling}' gives practically no timestep "
                          f"in {settings.min_timestep:g}…{settings.max_timestep:g}. Widen the range, choose another "
                          "timestep_sampling, or leave the flag out (the law is then squeezed into the range).")
    return cells


def _conditional(u: Tensor, settings: TimestepSettings, size: LatentSize) -> Tensor:
    """sigma conditioned on lying in the range, from the quantile table of its law.

    The law that rejection sampling gives, without its loop: one uniform a sample is enough, stratified ones stay
    stratified, and an impossible range is found before the first step.
    """
    cells = _allowed_cells(settings, size)
    position = u.double() * len(cells)
    cell = position.floor().clamp(max=len(cells) - 1)
    inside = (cells[cell.long()] + (position - cell)) / QUANTILE_CELLS
    whole = replace(settings, min_timestep=0.0, max_timestep=float(MODEL_TIME_SCALE))
    return RULES[settings.timestep_sampling].rule(inside.float(), whole, size)


def sigmas(u: Float[Tensor, " B"], settings: TimestepSettings, latent_size: LatentSize) -> Float[Tensor, " B"]:
    """Noise level of each sample, from one uniform in [0, 1] a sample (float32, CPU).

    min/max_timestep: with `preserve_distribution_shape` the rule's law is cut to the range; without, it is squeezed
    into it (the `sigma` rule picks among the grid levels of the range instead). `latent_size` is (height, width).
    Raises ConfigError as `check_settings` does.
    """
    check_settings(settings)
    low, high = settings.min_timestep / MODEL_TIME_SCALE, settings.max_timestep / MODEL_TIME_SCALE
    rule = RULES[settings.timestep_sampling].rule
    if settings.preserve_distribution_shape:
        sigma_ = _conditional(u, settings, latent_size)
    elif settings.timestep_sampling == "sigma":
        sigma_ = rule(u, settings, latent_size)
    else:
        sigma_ = rule(u, settings, latent_size) * (high - low) + low
    return sigma_.clamp(low, high)


def stratified_uniforms(count: int, buckets: int, *, seed: int, epoch: int) -> Float[Tensor, " N"]:
    """Uniforms for the `count` samples of an epoch, equally many from each of `buckets` equal slices, shuffled.

    Index them with the sample's position in the epoch's global order (`num_timestep_buckets`).
    """
    if buckets < 2:
        raise ConfigError(f"num_timestep_buckets is {buckets}; it needs 2 or more (leave it out for plain draws).")
    source = generator(seed, "timestep buckets", epoch)
    per_bucket = -(-count // buckets)
    inside = torch.rand(per_bucket, buckets, generator=source)
    values = ((torch.arange(buckets) + inside) / buckets).flatten()
    return values[torch.randperm(len(values), generator=source)][:count]
