"""The flow convention, in one place: x_sigma = (1 - sigma) * data + sigma * noise, velocity = noise - data.

sigma is the share of noise, 1 at the start of sampling and 0 at its end. The model's time is 1000 * sigma (the UniPC
and DPM++ samplers of Wan truncate it to a whole number).
"""

from torch import Tensor

MODEL_TIME_SCALE = 1000
"""Model time at sigma = 1."""


def mix(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x_sigma, the point on the straight path from `data` (sigma 0) to `noise` (sigma 1)."""
    return (1 - sigma) * data + sigma * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """d x_sigma / d sigma = noise - data: what the model predicts."""
    return noise - data


def data_from_velocity(sample: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Data that `sample` at `sigma` and its velocity point at: x - sigma * v."""
    return sample - sigma * velocity


def shift_sigma(sigma, shift: float):
    """Time shift S*sigma / (1 + (S - 1)*sigma): above 1 it moves steps (or training draws) to the noisy end.

    `sigma` may be a float, an array or a tensor; 0 and 1 stay where they are.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)
