"""Flow matching for a batch: the noisy input and what the model shall predict from it."""

from jaxtyping import Float
from torch import Tensor

from common.flow import mix, velocity


def per_sample(values: Float[Tensor, " B"], like: Tensor) -> Tensor:
    """`values` with as many trailing axes of length 1 as `like` has, for broadcasting."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def noisy_input(data: Float[Tensor, "B *shape"], noise: Float[Tensor, "B *shape"], sigma: Float[Tensor, " B"]
                ) -> Float[Tensor, "B *shape"]:
    """x_sigma = (1 - sigma) * data + sigma * noise, a noise level a sample, in float32."""
    return mix(data.float(), noise.float(), per_sample(sigma.float(), data))


def velocity_target(data: Float[Tensor, "B *shape"], noise: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
    """v = noise - data, in float32: the same at every noise level."""
    return velocity(data.float(), noise.float())
