"""What a training batch is shown: given frames and dropouts, drawn for each sample.

Every draw is seeded by (seed, purpose, epoch, position in the epoch's global order), so neither the number of
processes nor the cut into batches changes it. Validation draws nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Bool
import torch
from torch import Tensor

from common.devices import sent
from common.features import FeatureBatch
from common.seeding import generator
from common.timebase import latent_frame_count
from dataset.plan import TrainingItem
from training.showing import REFERENCE, SOUND, Showing
from wan.conditions.given_frames import with_prefix_given
from wan.encoders.specs import NULL


@dataclass(frozen=True)
class Place:
    """Where samples stand in a run: what their draws hang on."""

    positions: Sequence[int]
    seed: int
    epoch: int

    def uniforms(self, purpose: str, count: int) -> list[list[float]]:
        """`count` numbers in [0, 1) for each sample."""
        return [torch.rand(count, generator=generator(self.seed, purpose, self.epoch, position), dtype=torch.float64
                           ).tolist() for position in self.positions]


@dataclass(frozen=True)
class Dropped:
    """Samples that lack something."""

    sound: Bool[Tensor, " B"]
    text: Bool[Tensor, " B"]
    reference: Bool[Tensor, " B"]


def prefix_counts(showing: Showing, place: Place, latent_frames: int) -> list[int]:
    """Latent frames that are given of each sample: 0 where the prefix is dropped.

    Only lengths that leave a latent frame to be learned are drawn; of a picture nothing is given.
    """
    counts = [latent_frame_count(frames) for frames in showing.prefix_frames]
    choices = [(count, weight) for count, weight in zip(counts, showing.prefix_weights, strict=True)
               if count < latent_frames]
    return [0 if drop < showing.prefix_dropout or not choices else _chosen(choices, which)
            for drop, which in place.uniforms("prefix", 2)]


def _chosen(choices: Sequence[tuple[int, float]], uniform: float) -> int:
    """The value in whose part of the weights' sum `uniform` lies."""
    left = uniform * sum(weight for _, weight in choices)
    for value, weight in choices:
        left -= weight
        if left < 0:
            return value
    return choices[-1][0]


def dropped(showing: Showing, place: Place) -> Dropped:
    """Which samples lack sound, text or both (one draw, so that the three exclude each other), and their reference."""
    audio, text, both = showing.audio_dropout, showing.text_dropout, showing.audio_text_dropout
    draws = torch.tensor(place.uniforms("sound and text dropout", 1), dtype=torch.float64)[:, 0]
    has_both = (draws >= audio + text) & (draws < audio + text + both)
    reference = torch.tensor(place.uniforms("reference dropout", 1), dtype=torch.float64)[:, 0]
    return Dropped(sound=(draws < audio) | has_both, text=((draws >= audio) & (draws < audio + text)) | has_both,
                   reference=reference < showing.reference_dropout)


def with_prefix(features: FeatureBatch, latents: Tensor, clips: Sequence[TrainingItem], counts: Sequence[int]
                ) -> FeatureBatch:
    """The batch with the first `counts` latent frames of its clips given.

    Where that is one frame and it is the reference picture itself, it plays the still that a generation begins with,
    whose sound is not heard. A picture keeps its only frame to be learned, so nothing is given there.
    """
    if latents.shape[2] == 1:
        return features
    is_still = [count == 1 and clip.item.reference_frame(clip.span) == clip.span.start
                for count, clip in zip(counts, clips, strict=True)]
    return with_prefix_given(features, latents, counts, torch.tensor(is_still))


def with_dropouts(features: FeatureBatch, lost: Dropped) -> FeatureBatch:
    """The batch without what is `lost`: sound and reference marked absent, captions replaced by the null text.

    A sample that had no sound before stays without.
    """
    present = dict(features.present)
    for name, samples in ((SOUND, lost.sound), (REFERENCE, lost.reference)):
        if samples.any() and name in features.features:
            kept = ~samples
            present[name] = sent(kept, present[name].device) & present[name] if name in present else kept
    entries = dict(features.features)
    if lost.text.any():
        text = entries["text"]
        hidden = [null if is_lost else own for own, null, is_lost in
                  zip(text["hidden"], text[NULL], lost.text.tolist(), strict=True)]
        entries["text"] = {**text, "hidden": hidden}
    return replace(features, features=entries, present=present)
