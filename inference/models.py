"""The models of a pipeline: loaded when first asked for, freed by name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
import time
from typing import Any

import torch
from torch import nn

from common.devices import free_memory, pick_device
from common.dtypes import dtype_name, parse_dtype
from common.logs import get_logger
from inference.adapters import attach_to
from inference.model_files import ModelFiles
from inference.request import GenerationRequest
from networks.merge import LoraMerge
import wan
from wan.conditions.base import Condition
from wan.memory.blocks import run_blocks
from wan.memory.fp8 import Fp8Settings
from wan.memory.fp8_model import require_fp8_compute
from wan.memory.swap import BlockSwap, spread
from wan.memory.vae_speed import speed_up, usual_speed
from wan.modules.attention_probe import choose_attention
from wan.modules.dit import WanDiT
from wan.modules.vae import Vae

log = get_logger(__name__)

ENCODERS = ("text_encoder", "image_encoder", "audio_encoder", "vae")
"""What a pipeline holds beside the DiT and its conditions."""

LARGE_CONDITION = 1_000_000_000
"""Parameters above which a condition is not held in float32, for its memory (`frame_xattn` at 14B)."""


class Models:
    """Loaded models by kind (`text_encoder`, `image_encoder`, `audio_encoder`, `vae`, `dit`, `conditions`).

    `loaded` brings models that are in memory already, such as a trainer's DiT; they are used as they are and never
    freed here.
    """

    def __init__(self, files: ModelFiles, request: GenerationRequest, loaded: Mapping[str, Any] | None = None) -> None:
        self.files = files
        self.request = request
        self.device = pick_device(request.device)
        if request.fp8_fast:
            require_fp8_compute(self.device, self.dit_dtype)
        self._loaded: dict[str, Any] = dict(loaded or {})
        self._borrowed = set(self._loaded)

    def get(self, kind: str) -> Any:
        """The model of this kind, loading it if need be."""
        if kind not in self._loaded:
            started = time.monotonic()
            self._loaded[kind] = self._loaders[kind]()
            log.info("loaded %s in %.1f s", kind.replace("_", " "), time.monotonic() - started)
        return self._loaded[kind]

    def lend(self, **loaded: Any) -> None:
        """Bring models that were loaded elsewhere after this pipeline was made."""
        self._loaded |= loaded
        self._borrowed |= set(loaded)

    def path(self, kind: str) -> Path:
        """The weights of a kind that makes features."""
        path = {"text_encoder": self.files.t5, "image_encoder": self.files.clip, "audio_encoder": self.files.wav2vec,
                "vae": self.files.vae}[kind]
        assert path is not None, kind
        return path

    def free(self, *kinds: str) -> None:
        """Let go of models and give their memory back."""
        own = [kind for kind in kinds if kind in self._loaded and kind not in self._borrowed]
        for kind in own:
            del self._loaded[kind]
        if own:
            free_memory()

    @contextmanager
    def parked(self) -> Iterator[None]:
        """Encoders and VAE that are loaded lie in host memory inside, where blocks are swapped: the card is small.

        A DiT without swapped blocks has room beside it, and moving models to and fro would cost more than it gives.
        """
        kinds = [kind for kind in ENCODERS if kind in self._loaded] if self.request.blocks_to_swap else []
        homes = [(_module(self._loaded[kind]), self.device) for kind in kinds]
        homes = [(module, device) for module, device in homes if next(module.parameters()).device.type != "cpu"]
        for module, _ in homes:
            module.to("cpu")
        if homes:
            free_memory()
        try:
            yield
        finally:
            for module, device in homes:
                module.to(device)

    @property
    def _loaders(self) -> dict[str, Callable[[], Any]]:
        files, request, device = self.files, self.request, self.device
        return {
            "text_encoder": lambda: wan.load_text_encoder(
                files.t5, tokenizer=files.tokenizer, dtype=parse_dtype(request.t5_dtype),
                device="cpu" if request.text_encoder_cpu else device, fp8=Fp8Settings() if request.fp8_t5 else None),
            "image_encoder": lambda: wan.load_image_encoder(self.path("image_encoder"), device=device,
                                                            dtype=parse_dtype(request.clip_dtype)),
            "audio_encoder": lambda: wan.load_audio_encoder(self.path("audio_encoder"), device=device,
                                                            dtype=torch.float32, preset=files.preset),
            "vae": lambda: load_fast_vae(self.path("vae"), request),
            "dit": self._load_dit,
            "conditions": self._load_conditions,
        }

    @property
    def dit_dtype(self) -> torch.dtype:
        """What the DiT computes in."""
        if self.request.dit_dtype is not None:
            return parse_dtype(self.request.dit_dtype)
        if self.device == "cpu":
            return torch.float32
        return torch.float16 if self.files.facts.stored_dtype == torch.float16 else torch.bfloat16

    def _load_dit(self) -> WanDiT:
        files, request = self.files, self.request
        loras = () if request.no_lora else files.adapters.files
        if request.no_lora:
            log.info("the LoRA weights of %d files are left out; conditions are kept", len(files.adapters.files))
        merge = LoraMerge(loras) if loras and not request.lora_attach else None
        fp8 = fp8_settings(request, is_stored_in_fp8=files.facts.is_stored_in_fp8)
        variant = files.variant
        attention = choose_attention(request.attn_mode, self.device, self.dit_dtype, heads=variant.heads,
                                     head_dim=variant.head_dim, trains=False)
        log.info("attention: %s", attention.words)
        dit = wan.load_dit(files.dit, dtype=self.dit_dtype, device=self.device, transform=merge, fp8=fp8,
                           blocks_on_cpu=spread(request.blocks_to_swap, files.variant.layers))
        for report in merge.reports() if merge else ():
            log.info("%s", report.text())
        if request.compile:
            run_blocks(dit, ["none"] * len(dit.blocks), compiled=True, backend=request.compile_backend,
                       mode=request.compile_mode, has_dropout=False)
        if request.blocks_to_swap:
            swap = BlockSwap(dit, request.blocks_to_swap)
            log.info("blocks in host memory: %s (%.2f GiB); ring on %s: %.2f GiB", ", ".join(map(str, swap.blocks)),
                     swap.host_bytes / 2**30, self.device, swap.ring_bytes / 2**30)
        dit.set_attention(attention.name)
        if loras and request.lora_attach:
            attach_to(dit, files.adapters)
        log.info("DiT: %s, %d blocks, %s%s on %s", files.variant.family, files.variant.layers,
                 dtype_name(self.dit_dtype), " with float8 block weights" if fp8 else "", self.device)
        return dit

    def _load_conditions(self) -> dict[str, Condition]:
        conditions = self.files.adapters.build_conditions(self.files.variant)
        return {name: condition.to(self.device, self._stored_in(condition)) for name, condition in conditions.items()}

    def _stored_in(self, condition: Condition) -> torch.dtype:
        """float32, or for a condition as large as a model what the DiT computes in."""
        size = sum(parameter.numel() for parameter in condition.parameters())
        return self.dit_dtype if size > LARGE_CONDITION else torch.float32


def _module(model: Any) -> nn.Module:
    """What holds a loaded model's weights: itself, or the module inside an encoder."""
    found: nn.Module = model if isinstance(model, nn.Module) else model.model
    return found


def load_fast_vae(path: Path, request: GenerationRequest) -> Vae:
    """The VAE of a generation, run the way that is fast on its device."""
    device, dtype = pick_device(request.device), parse_dtype(request.vae_dtype)
    vae = wan.load_vae(path, dtype=dtype, device=device)
    return speed_up(vae, usual_speed(device, dtype, compiled=request.vae_compile))


def fp8_settings(request: GenerationRequest, *, is_stored_in_fp8: bool) -> Fp8Settings | None:
    """How the DiT's block weights are stored; None for the DiT's dtype. A float8 file stays float8."""
    if request.fp8_fast:
        return Fp8Settings(mode="tensor", computes=True)
    if request.fp8_scaled or is_stored_in_fp8:
        return Fp8Settings()
    return Fp8Settings(mode="tensor") if request.fp8 else None
