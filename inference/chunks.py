"""A long video, chunk by chunk: each is sampled, decoded, and hands its last frames to the next."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxtyping import Float
import torch
from torch import Tensor

from common.media.picture import fit_exact
from inference.colour import ease_seam, match_colours, match_latents
from inference.decoding import decode_with, decoded_chunks
from inference.inputs import Prepared
from inference.plan import Plan
from inference.segments import Segment
from wan.conditions.image_latent import MASK_CHANNELS
from wan.modules.vae import Vae
from wan.modules.vae_layers import PastFrames

SampleChunk = Callable[[Prepared, Segment], Tensor]
"""(the chunk's features, the chunk) → its latents `16 T h w`, on the CPU."""


@dataclass(frozen=True)
class Chunk:
    """One chunk of a long video."""

    segment: Segment
    latents: Float[Tensor, "16 T h w"]
    """All of its latents, the given ones included."""
    frames: Float[Tensor, "3 F H W"]
    """Its new frames in -1…1, on the CPU."""


@torch.no_grad()
def make_chunks(prepared: Prepared, vae: Vae, sample: SampleChunk,
                saved: Callable[[Segment], Tensor | None] = lambda segment: None) -> Iterator[Chunk]:
    """The chunks of a plan, in order; of those that `saved` knows the latents are taken from there.

    With `--stitch pixel` the last frames of a chunk, after the colours are matched, are encoded again and given to the
    next one (OmniAvatar); with `latent` its last latents are, and decoding goes on without a break. `--sink reference`
    puts the picture in the place of the first frame that is handed on. No more than one chunk is held.
    """
    plan = prepared.plan
    decode = _pixel_decoder(vae) if plan.request.stitch == "pixel" else _stream_decoder(vae)
    tail: Tensor | None = None
    before: Tensor | None = None
    first: Tensor | None = None
    for segment in plan.segments:
        if segment.new.start >= plan.shown_frames:
            return
        latents = saved(segment)
        if latents is None:
            asked = prepared
            if before is not None and tail is not None:
                asked = _following(prepared, segment, _handed_on(plan, before, first), tail, vae)
            latents = sample(asked, segment)
        frames = _matched(plan, decode(latents, segment))
        if tail is not None:
            frames = ease_seam(frames, tail[:, -1], plan.request.ease_seams)
        yield Chunk(segment, latents, frames[:, :plan.shown_frames - segment.new.start])
        tail = _tail(tail, frames, plan.request.overlap_frame)
        before = latents
        first = latents[:, 1:] if first is None and plan.request.color_match else first


def _handed_on(plan: Plan, before: Tensor, first: Tensor | None) -> Tensor:
    """Latents of a chunk as the next one takes them over: with --color_match at the first chunk's statistics."""
    return before if first is None else match_latents(before, first, plan.request.color_match)


def _following(prepared: Prepared, segment: Segment, before: Tensor, tail: Tensor, vae: Vae) -> Prepared:
    if prepared.plan.request.stitch == "latent":
        known = before[:, -segment.known_latents:]
    else:
        known = vae.encode(tail[None])[0].float().cpu()
    if prepared.plan.request.sink == "reference":
        reference = prepared.batch.features["reference_latents"]["latents"][0]
        known = torch.cat((reference, known[:, 1:]), dim=1)
    channels = _image_latents(prepared.plan, segment, tail, vae) if "image_latents" in prepared.batch.features else None
    return prepared.following(segment, known, channels)


def _image_latents(plan: Plan, segment: Segment, tail: Tensor, vae: Vae) -> Float[Tensor, "20 T h w"]:
    """What an image-to-video model is shown of a later chunk: the frames that are known, mid grey after them."""
    rest = tail.new_zeros(3, segment.frames - segment.known, *tail.shape[2:])
    latents = vae.encode(torch.cat((tail, rest), dim=1)[None])[0].float().cpu()
    mask = torch.zeros_like(latents[:MASK_CHANNELS])
    mask[:, :segment.known_latents] = 1
    return torch.cat((mask, latents))


def _pixel_decoder(vae: Vae) -> Callable[[Tensor, Segment], Tensor]:
    """Each chunk is decoded on its own, and the frames that were given are dropped."""
    def decode(latents: Tensor, segment: Segment) -> Tensor:
        frames = decode_with(vae, latents)
        return frames[:, segment.known if segment.index else 0:]
    return decode


def _stream_decoder(vae: Vae) -> Callable[[Tensor, Segment], Tensor]:
    """The new latents of all chunks are decoded as one stream."""
    past = PastFrames()

    def decode(latents: Tensor, segment: Segment) -> Tensor:
        new = latents[:, segment.known_latents if segment.index else 0:]
        return torch.cat(list(decoded_chunks(vae, new, past)), dim=1)
    return decode


def _tail(tail: Tensor | None, frames: Tensor, overlap: int) -> Tensor:
    """The last `overlap` frames of the video so far; a short chunk may bring fewer."""
    if tail is not None and frames.shape[1] < overlap:
        frames = torch.cat((tail, frames), dim=1)
    return frames[:, -overlap:].clone()


def _matched(plan: Plan, frames: Tensor) -> Tensor:
    if plan.request.color_match == 0 or plan.scene.first is None:
        return frames
    reference = fit_exact(plan.scene.first, plan.size, plan.picture_mode)[:, 0]  # type: ignore[arg-type]
    return match_colours(frames, reference, plan.request.color_match)
