"""Given frames spoilt in training as a long generation spoils them: a model that saw only clean ones drifts.

Every chunk of a long video goes on from frames that were generated: blurred, of other colours, noisy by a little. What
a model has never seen it carries on and makes worse. Spoilt prefixes, with the clean clip as the target and the clean
reference beside, teach it to take motion from the prefix and looks from the reference. Source: audio.md 2.8 (Live
Avatar's corrupted history) and 5.7 (blur, colour jitter of the prefix); here in latents, so that caches suffice.
"""

from collections.abc import Sequence

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from common.devices import sent
from common.seeding import generator
from training.drawn import Place

PURPOSE = "prefix corruption"
COLOUR = 0.5
"""Deviation of a channel's shift and gain at strength 1, in units of normalised latents (deviation about 1)."""


def corrupted_prefix(latents: Float[Tensor, "B C F H W"], counts: Sequence[int], place: Place, strength: float
                     ) -> Float[Tensor, "B C F H W"]:
    """`latents` with the first `counts` frames of each sample spoilt by up to `strength` 0…1; the others as they are.

    A single given frame stays clean: a generation begins with the picture itself. Blur, colour and noise of a sample
    have amounts of their own between 0 and `strength`, drawn by its place.
    """
    if strength == 0:
        return latents
    result = latents.clone()
    for row, (count, position) in enumerate(zip(counts, place.positions, strict=True)):
        if count > 1:
            draws = generator(place.seed, PURPOSE, place.epoch, position)
            result[row, :, :count] = _spoilt(latents[row, :, :count], strength, draws)
    return result


def _spoilt(prefix: Float[Tensor, "C P H W"], strength: float, draws: torch.Generator) -> Float[Tensor, "C P H W"]:
    blur, colour, noise = (strength * torch.rand(3, generator=draws)).tolist()
    channels = (len(prefix), 1, 1, 1)
    shift, gain = (colour * COLOUR * _like(prefix, torch.randn(channels, generator=draws)) for _ in range(2))
    grain = _like(prefix, torch.randn(prefix.shape, generator=draws))
    soft = torch.lerp(prefix, avg_pool2d(pad(prefix, (1, 1, 1, 1), mode="replicate"), 3, stride=1), blur)
    mean = soft.mean(dim=(1, 2, 3), keepdim=True)
    tinted = (soft - mean) * (1 + gain) + mean + shift
    return (1 - noise) * tinted + noise * grain


def _like(prefix: Tensor, draw: Tensor) -> Tensor:
    return sent(draw, prefix.device).to(prefix.dtype)
