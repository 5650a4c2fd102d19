"""The VAE made faster without changing what it computes: longer chunks, channels-last weights, compiled chunks.

Chunks are exact: every layer remembers the frames that it looks back at, so that any division of a clip gives the
same numbers but for the order of sums. Measured on an H200: docs/performance.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import time

from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.host_memory import host_memory
from common.logs import get_logger
from wan.memory.vae_fused import FusedChunks, why_not_fused
from wan.modules.vae import Task, Vae
from wan.modules.vae_coders import VaeShape
from wan.modules.vae_layers import CausalConv3d, Downsample, PastFrames

log = get_logger(__name__)

Chunked = Callable[[Tensor, PastFrames], Tensor]
"""What encodes or decodes a chunk."""

ENCODE_LATENTS, DECODE_LATENTS = 4, 5
"""Latent frames of a call: 16 frames in, 20 frames out. More gains nothing on an H200 and takes memory."""
HELD_PER_PIXEL = 512
"""Numbers that one frame of a call holds at its peak for each pixel, as counted in a residual block of the finest
stage at the released width of 96: its input, the normalised copy, that copy with the past in front, the result."""
MAX_ELEMENTS = 2**31 - 1
"""Convolutions of larger channels-last tensors fall on a path that is many times slower."""
BUDGET = 0.5
"""Share of the free memory that a call may take."""
COMPILES_MANY = False
"""Whether many clips in half precision are compiled for unasked, instead of run in fused passes."""
SHAPES = 64
"""Forms of chunks that are compiled in one process before torch gives up: two or three for each size."""


@dataclass(frozen=True)
class VaeSpeed:
    """How a VAE is run. Equal numbers but for rounding, whatever is chosen."""

    encode_latents: int = ENCODE_LATENTS
    """Most latent frames (four video frames each) that one call encodes after the clip's first frame."""
    decode_latents: int = DECODE_LATENTS
    """Most latent frames that one call decodes after the first."""
    channels_last: bool = False
    """Weights and activations with the channels innermost, as tensor cores want them."""
    fused: bool = False
    """One pass between two convolutions instead of five (`vae_fused`); implies channels last. Nothing is compiled for
    a size. Where gradients are wanted the plain path runs. Without effect where `compiled`."""
    tuned: bool = False
    """Let cuDNN try its kernels for each form of a convolution: seconds for each size of clips, once. Which one wins
    may differ from run to run, and with it the rounding. torch keeps one plan for a form as long as the process runs,
    so that one that ran untuned before is not tried any more, and one that was tried stays so."""
    compiled: bool = False
    """Compile encoder and decoder, once for each form of a chunk: a minute or more at first, then faster."""
    budget_bytes: int | None = None
    """Memory that a call may take; None: half of what is free when a size is first met."""


def usual_speed(device: torch.device | str, dtype: torch.dtype, *, compiled: bool = False, many: bool = False
                ) -> VaeSpeed:
    """What is known to be fast there; off CUDA the plain path. `many`: clips are to come that repay cuDNN's trials.

    On a CPU longer chunks took from 0.5 to 1.5 times as long, by size, and as long at the released width and 64x96;
    short ones take less memory and give the numbers that earlier caches hold.
    """
    on_cuda = torch.device(device).type == "cuda"
    if compiled and not on_cuda:
        log.info("the VAE is not compiled: that is worth its time on CUDA only, and it runs on %s", device)
    if not on_cuda:
        return VaeSpeed(1, 1)
    is_half = dtype in (torch.bfloat16, torch.float16)
    compiled = compiled or (COMPILES_MANY and many and is_half)
    return VaeSpeed(channels_last=is_half, fused=is_half and not compiled, tuned=many or compiled, compiled=compiled)


def speed_up(vae: Vae, speed: VaeSpeed | None = None) -> Vae:
    """Make `vae` run as `speed` says (default: `usual_speed` of its device and dtype); returns it.

    Attached from outside: `vae.chunk_latents`, `encode_chunk` and `decode_chunk` are replaced on this object.
    """
    speed = usual_speed(vae.device, vae.dtype) if speed is None else speed
    slow_down(vae)
    vae.chunk_latents = _Chunks(vae, speed)  # type: ignore[method-assign]
    if speed.channels_last or speed.fused:
        use_channels_last(vae)
    if speed.fused and not speed.compiled and _can_fuse(vae):
        chunks = FusedChunks(vae)
        vae.encode_chunk = _without_gradients(chunks.encode, vae.encode_chunk)  # type: ignore[method-assign, assignment]
        vae.decode_chunk = _without_gradients(chunks.decode, vae.decode_chunk)  # type: ignore[method-assign, assignment]
    elif speed.channels_last or speed.fused:
        vae.encode_chunk = _channels_last(vae.encode_chunk)  # type: ignore[method-assign, assignment]
        vae.decode_chunk = _channels_last(vae.decode_chunk)  # type: ignore[method-assign, assignment]
    if speed.compiled:
        form = torch.channels_last_3d if speed.channels_last else torch.contiguous_format
        vae.encode_chunk = CompiledChunk(  # type: ignore[method-assign, assignment]
            vae.encode_chunk, layers_with_past(vae.encoder), memory_format=form)
        vae.decode_chunk = CompiledChunk(  # type: ignore[method-assign, assignment]
            vae.decode_chunk, layers_with_past(vae.decoder), memory_format=form)
    if speed.tuned:
        vae.encode_chunk = _tuned(vae.encode_chunk)  # type: ignore[method-assign, assignment]
        vae.decode_chunk = _tuned(vae.decode_chunk)  # type: ignore[method-assign, assignment]
    return vae


def slow_down(vae: Vae) -> None:
    """Undo `speed_up`, but for the layout of the weights."""
    for name in ("chunk_latents", "encode_chunk", "decode_chunk"):
        if name in vars(vae):
            delattr(vae, name)


def use_channels_last(vae: Vae) -> None:
    """Lay the weights of all convolutions out with the channels innermost; the values stay."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)


def layers_with_past(coder: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of an encoder or decoder that keep frames between chunks."""
    def looks_back(module: nn.Module) -> bool:
        if isinstance(module, Downsample):
            return module.time_conv is not None
        return isinstance(module, CausalConv3d) and module.kernel_size[0] > 1
    return tuple(module for module in coder.modules() if looks_back(module))


class CompiledChunk:
    """A chunk as a pure function of tensors, (chunk, kept frames) → (result, kept frames), compiled without a break.

    Where compiling fails, a warning says why and the chunk runs as it is.
    """

    def __init__(self, run: Chunked, layers: tuple[nn.Module, ...], *,
                 memory_format: torch.memory_format, backend: str = "inductor") -> None:
        self._run, self._layers, self._format = run, layers, memory_format
        self._shapes: set[tuple[tuple[int, ...], bool]] = set()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
        self._function: Callable[..., tuple[Tensor, list[Tensor]]] | None = torch.compile(
            self.pure, fullgraph=True, dynamic=False, backend=backend)

    def pure(self, chunk: Tensor, kept: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """`kept`: nothing for a clip's first chunk, else the frames of every layer that looks back, in their order."""
        past = PastFrames(zip(self._layers, kept, strict=True)) if kept else PastFrames()
        result = self._run(chunk, past)
        # In one layout, whichever chunk they come from: another would be compiled for again.
        return result, [past[layer].clone(memory_format=self._format) for layer in self._layers]

    def __call__(self, chunk: Float[Tensor, "B C T H W"], past: PastFrames) -> Tensor:
        """One chunk; `past` is read and written as by the plain function."""
        if self._function is None:
            return self._run(chunk, past)
        shape, started = (tuple(chunk.shape), bool(past)), time.monotonic()
        try:
            result, kept = self._function(chunk, [past[layer] for layer in self._layers] if past else [])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers raise anything, and the plain function gives the same
            told = " ".join(str(error).split()[:40])
            log.warning("the VAE could not be compiled and runs as it is: %s", told)
            self._function = None
            return self._run(chunk, past)
        past.update(zip(self._layers, kept, strict=True))
        if shape not in self._shapes:
            self._shapes.add(shape)
            log.info("compiled the VAE for %s in %.0f s", "x".join(map(str, chunk.shape)), time.monotonic() - started)
        return result


class _Chunks:
    """`Vae.chunk_latents` by wish, memory and the reach of the kernels; decided once for each size."""

    def __init__(self, vae: Vae, speed: VaeSpeed) -> None:
        self._vae, self._speed = vae, speed
        self._known: dict[tuple[Task, int, int, int], int] = {}

    def __call__(self, task: Task, batch: int, height: int, width: int) -> int:
        key = (task, batch, height, width)
        if key not in self._known:
            speed = self._speed
            wanted = speed.encode_latents if task == "encode" else speed.decode_latents
            budget = free_bytes(self._vae.device) * BUDGET if speed.budget_bytes is None else speed.budget_bytes
            self._known[key] = wanted if wanted == 1 else fitting_latents(
                wanted, batch * height * width, shape=self._vae.shape, itemsize=self._vae.dtype.itemsize,
                budget_bytes=int(budget))
        return self._known[key]


def fitting_latents(wanted: int, pixels: int, *, shape: VaeShape, itemsize: int, budget_bytes: int) -> int:
    """How many of the `wanted` latent frames one call may take: at least one. `pixels`: of one frame of all clips."""
    frame_bytes = HELD_PER_PIXEL * shape.width / 96 * pixels * itemsize
    by_memory = budget_bytes / frame_bytes / shape.temporal_stride
    # The widest tensor at full size is the decoder's, twice the finest width, with two frames of the past.
    by_reach = (MAX_ELEMENTS / (2 * shape.width * pixels) - 2) / shape.temporal_stride
    return max(1, min(wanted, int(by_memory), int(by_reach)))


def free_bytes(device: torch.device) -> int:
    """Memory that a call can still have on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_memory().free


def _channels_last(run: Chunked) -> Chunked:
    def with_channels_last(chunk: Tensor, past: PastFrames) -> Tensor:
        return run(chunk.contiguous(memory_format=torch.channels_last_3d), past)
    return with_channels_last


def _can_fuse(vae: Vae) -> bool:
    """Tells why not, where the kernel cannot be had; off CUDA its form in torch runs, for tests."""
    reason = why_not_fused(vae) if vae.device.type == "cuda" else ""
    if reason:
        log.warning("the VAE runs without its fused passes, and slower: %s", reason)
    return not reason


def _without_gradients(run: Chunked, plain: Chunked) -> Chunked:
    """`run` writes over what gradients would need: where they are wanted, `plain` runs."""
    def with_choice(chunk: Tensor, past: PastFrames) -> Tensor:
        if torch.is_grad_enabled() and chunk.requires_grad:
            return plain(chunk, past)
        with torch.no_grad():
            return run(chunk, past)
    return with_choice


@contextmanager
def kernels_tried() -> Iterator[None]:
    """cuDNN tries its kernels for forms of convolutions that are new to the process."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _tuned(run: Chunked) -> Chunked:
    def with_trials(chunk: Tensor, past: PastFrames) -> Tensor:
        with kernels_tried():
            return run(chunk, past)
    return with_trials
