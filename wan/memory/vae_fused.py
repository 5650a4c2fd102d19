"""The VAE's encoder and decoder as convolutions with one pass between them; equal to their modules but for rounding.

Nothing is compiled for a size, so that a data set of many sizes runs as fast as one of a single size. Activations lie
as ``B T H W C`` throughout: frames by themselves (2D convolutions), places (products) and rows of channels (the pass of
`vae_rows`) are views of them.
"""

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from wan.memory.vae_rows import LAST, SUM, Pending, Wanted, finish, why_not
from wan.modules.vae import Vae
from wan.modules.vae_coders import Head
from wan.modules.vae_layers import (
    CausalConv3d,
    Downsample,
    FrameAttention,
    PastFrames,
    ResidualBlock,
    RMSNorm,
    Upsample,
)

QUERIES = 4096
"""Places of a frame that look at all others at a time, which bounds what their scores take."""


class FusedChunks:
    """`encode_chunk` and `decode_chunk` of a VAE whose weights lie with the channels innermost."""

    def __init__(self, vae: Vae) -> None:
        self._vae = vae

    def encode(self, video: Float[Tensor, "B 3 F H W"], past: PastFrames) -> Float[Tensor, "B 16 f h w"]:
        """As `Vae.encode_chunk`."""
        vae = self._vae
        return vae.conv1(run_coder(vae.encoder, (*vae.encoder.downsamples, *vae.encoder.middle), video, past),
                         past).chunk(2, dim=1)[0]

    def decode(self, means: Float[Tensor, "B 16 F H W"], past: PastFrames) -> Float[Tensor, "B 3 f h w"]:
        """As `Vae.decode_chunk`."""
        vae = self._vae
        return run_coder(vae.decoder, (*vae.decoder.middle, *vae.decoder.upsamples), vae.conv2(means, past), past)


def why_not_fused(vae: Vae) -> str:
    """Why the VAE cannot run so where it lies; an empty text where it can, which is tried in small."""
    reason = why_not(vae.device)
    if reason:
        return reason
    ones = torch.ones(16, 16, device=vae.device, dtype=vae.dtype)
    try:
        found = _scores(ones, ones).mean().item()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split()[:40])
    return "" if found == 4 else f"a product of half precision gave {found} for 4"


def run_coder(coder: nn.Module, layers: tuple[nn.Module, ...], x: Tensor, past: PastFrames) -> Tensor:
    """First convolution, `layers`, head."""
    first: CausalConv3d = coder.conv1  # type: ignore[assignment]
    head: Head = coder.head  # type: ignore[assignment]
    _, ready = finish(Pending(x.contiguous(memory_format=LAST)), Wanted(room=2, summed=False))
    assert ready is not None
    pending = _convolved(first, ready, past)
    for layer in layers:
        pending = LAYERS[type(layer)](layer, pending, past)  # type: ignore[operator]
    _, pending = _normed(head["0"], head["2"], pending, past, summed=False)  # type: ignore[arg-type]
    assert pending.bias is not None
    return pending.conv + pending.bias[:, None, None, None]


def _residual(block: ResidualBlock, pending: Pending, past: PastFrames) -> Pending:
    layers, shortcut = block.residual, block.shortcut
    total, inner = _normed(layers["0"], layers["2"], pending, past, summed=True)  # type: ignore[arg-type]
    _, outer = _normed(layers["3"], layers["6"], inner, past, summed=False)  # type: ignore[arg-type]
    assert total is not None
    if shortcut is None:
        return Pending(outer.conv, outer.bias, total)
    assert outer.bias is not None and shortcut.bias is not None
    return Pending(outer.conv, outer.bias + shortcut.bias, _pointwise(total, shortcut))


def _normed(norm: RMSNorm, conv: CausalConv3d, pending: Pending, past: PastFrames, *, summed: bool
            ) -> tuple[Tensor | None, Pending]:
    """(the sum, the convolution of its norm and SiLU)."""
    total, ready = finish(pending, Wanted(norm.gamma.flatten(), activated=True, room=conv.kernel_size[0] - 1,
                                          summed=summed))
    assert ready is not None
    return total, _convolved(conv, ready, past)


def _convolved(conv: CausalConv3d, ready: Tensor, past: PastFrames) -> Pending:
    """Convolve what lies behind room for the past."""
    _fill_room(conv, ready, conv.kernel_size[0] - 1, past)
    return Pending(_last(F.conv3d(ready, conv.weight, padding=conv.padding)), conv.bias)  # type: ignore[arg-type]


def _fill_room(layer: nn.Module, ready: Tensor, room: int, past: PastFrames) -> None:
    before = past.get(layer)
    if before is None:
        ready[:, :, :room].zero_()
    else:
        ready[:, :, :room] = before
    past.keep(layer, ready[:, :, -room:])


def _attention(layer: FrameAttention, pending: Pending, past: PastFrames) -> Pending:
    total, normed = finish(pending, Wanted(layer.norm.gamma.flatten()))
    assert total is not None and normed is not None
    batch, channels, _, height, width = total.shape
    places = rearrange(normed, "b c t h w -> (b t) (h w) c")
    qkv = F.linear(places, layer.to_qkv.weight.flatten(1), layer.to_qkv.bias)
    mixed = torch.empty_like(places)
    for frame, out in zip(qkv, mixed, strict=True):
        q, k, v = frame.split(channels, dim=1)
        for queries, part in zip(q.split(QUERIES), out.split(QUERIES), strict=True):
            part.copy_(_scores(queries, k).softmax(dim=1).to(v.dtype) @ v)
    out = F.linear(mixed, layer.proj.weight.flatten(1))
    return Pending(rearrange(out, "(b t) (h w) c -> b c t h w", b=batch, h=height, w=width), layer.proj.bias, total)


def _scores(q: Float[Tensor, "L C"], k: Float[Tensor, "S C"]) -> Float[Tensor, "L S"]:
    """Scaled products; in float32 at least, since half precision would round them before the exponential."""
    q = q * q.shape[1] ** -0.5
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(q, k.T, out_dtype=torch.float32)
    dtype = torch.promote_types(q.dtype, torch.float32)
    return q.to(dtype) @ k.to(dtype).T


def _downsampled(layer: Downsample, pending: Pending, past: PastFrames) -> Pending:
    _, padded = finish(pending, Wanted(padded=True, summed=False))
    assert padded is not None
    batch, conv, time_conv = padded.shape[0], layer.resample["1"], layer.time_conv
    frames = F.conv2d(_frames(padded), conv.weight, stride=2)  # type: ignore[arg-type]
    halved = Pending(_clip(frames, batch), conv.bias)  # type: ignore[arg-type]
    if time_conv is None:
        return halved
    if layer in past:
        _, ready = finish(halved, Wanted(room=1, summed=False))
        assert ready is not None
        _fill_room(layer, ready, 1, past)
        return Pending(_last(F.conv3d(ready, time_conv.weight, stride=time_conv.stride)),  # type: ignore[arg-type]
                       time_conv.bias)
    x, _ = finish(halved, SUM)
    assert x is not None
    past.keep(layer, x[:, :, -1:])
    return Pending(x if x.shape[2] == 1 else _last(torch.cat([x[:, :, :1], time_conv(x)], dim=2)))


def _upsampled(layer: Upsample, pending: Pending, past: PastFrames) -> Pending:
    time_conv, conv = layer.time_conv, layer.resample["1"]
    if time_conv is not None and time_conv in past:
        _, ready = finish(pending, Wanted(room=time_conv.kernel_size[0] - 1, summed=False))
        assert ready is not None
        x = _doubled(_convolved(time_conv, ready, past))
    else:
        total, _ = finish(pending, SUM)
        assert total is not None
        x = total if time_conv is None else _last(layer._double_frames(time_conv, total, past))
    phases = F.conv2d(_frames(x), _phase_weights(conv.weight), padding=1)  # type: ignore[arg-type]
    return Pending(_clip(phases, x.shape[0]), conv.bias, phased=True)  # type: ignore[arg-type]


def _phase_weights(weight: Float[Tensor, "O C 3 3"]) -> Float[Tensor, "4*O C 2 2"]:
    """The convolution of a picture of doubled places, as one of the picture itself for each of four phases.

    An even row of the doubled picture sees places i-1, i, i, an odd one i, i, i+1: two of the three weights meet the
    same place and can be added before. Four of nine products are left.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    pairs = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=dtype)  # phase, place, weight
    phases = torch.einsum("ocyx,pvy,qux->pqocvu", weight.to(dtype), pairs, pairs)
    return phases.flatten(0, 2).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _doubled(pending: Pending) -> Float[Tensor, "B c t H W"]:
    """Frames that lie as two halves of the channels, one after the other."""
    assert pending.bias is not None
    pairs = rearrange(pending.conv, "b (two c) t h w -> b t two h w c", two=2)
    bias = rearrange(pending.bias, "(two c) -> two 1 1 c", two=2)
    return rearrange((pairs + bias).contiguous(), "b t two h w c -> b c (t two) h w")


def _pointwise(x: Float[Tensor, "B C T H W"], conv: CausalConv3d) -> Float[Tensor, "B O T H W"]:
    """A 1x1x1 convolution without its bias, as a product of rows."""
    return F.linear(x.permute(0, 2, 3, 4, 1), conv.weight.flatten(1)).permute(0, 4, 1, 2, 3)


def _frames(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "n C H W"]:
    """Frames as a batch of pictures with the channels innermost: a view."""
    return x.transpose(1, 2).flatten(0, 1)


def _clip(frames: Float[Tensor, "n C H W"], batch: int) -> Float[Tensor, "B C T H W"]:
    return _last(frames.unflatten(0, (batch, -1)).transpose(1, 2))


def _last(x: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """`x` with the channels innermost: itself, where the convolution kept its input's layout as it should."""
    return x.contiguous(memory_format=LAST)


LAYERS = {ResidualBlock: _residual, FrameAttention: _attention, Downsample: _downsampled, Upsample: _upsampled}
"""What runs each kind of layer."""
