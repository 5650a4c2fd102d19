"""Looking inside a generation: what goes in, the latents after each step, and figures of every frame."""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from torch import Tensor

from common.atomic import write_text
from common.logs import get_logger
from inference.denoise import Watch
from inference.guidance import Step
from inference.inputs import Prepared

log = get_logger(__name__)


def tell_inputs(prepared: Prepared, noise: Tensor) -> None:
    """Log shape, dtype, mean and deviation of everything that a clip or chunk is made from (`--debug`)."""
    batch = prepared.batch
    named: list[tuple[str, Any]] = [("text", prepared.text), ("negative text", prepared.negative_text)]
    named += [(f"{feature}.{name}", tensor) for feature, tensors in batch.features.items()
              for name, tensor in tensors.items()]
    named += [(f"voice {i + 2}.{name}", tensor) for i, voice in enumerate(batch.voices)
              for name, tensor in voice.items()]
    named += [("regions", batch.regions), ("given latents", batch.given_latents), ("noise", noise)]
    for name, tensor in named:
        if tensor is not None:
            log.info("%s", describe(name, tensor))
    if batch.given_mask is not None:
        rows = batch.given_mask[0, 0].flatten(1).mean(dim=1).tolist()
        log.info("given mask (1 = given) by latent frame: %s", " ".join(f"{row:g}" for row in rows))


def describe(name: str, tensor: Tensor) -> str:
    """One line about a tensor."""
    values = tensor.float()
    spread = values.std().item() if values.numel() > 1 else 0.0
    shape = "x".join(map(str, tensor.shape))
    return f"{name}: {shape} {str(tensor.dtype).removeprefix('torch.')}, mean {values.mean():.4f}, std {spread:.4f}"


def told(watch: Watch | None) -> Watch:
    """`watch`, with a line about the latents after every step."""
    def watching(step: Step, sample: Tensor) -> None:
        log.info("%s", describe(f"step {step.index + 1} of {step.count}, sigma {step.sigma:.4f}", sample))
        if watch is not None:
            watch(step, sample)
    return watching


class FrameStats:
    """Figures of the frames of one video, in levels 0…255 (`--frame_stats`); written when asked."""

    def __init__(self, path: Path, reference: UInt8[np.ndarray, "H W 3"] | None) -> None:
        self.path = path
        self._reference = reference
        self._before: np.ndarray | None = None
        self._lines: list[str] = []

    def measure(self, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
        """Measure the frames that follow those before."""
        for frame in frames:
            self._lines.append(json.dumps({"frame": len(self._lines), **self._measure(frame)}))
            self._before = frame

    def write(self) -> None:
        """Write a JSON line for every frame that was seen."""
        write_text(self.path, "".join(line + "\n" for line in self._lines))

    def _measure(self, frame: np.ndarray) -> dict[str, float | None]:
        import cv2

        levels = frame.astype(np.float32)
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return {"min": float(levels.min()), "max": float(levels.max()), "mean": round(float(levels.mean()), 4),
                "std": round(float(levels.std()), 4), "change": _distance(levels, self._before),
                "from_reference": _distance(levels, self._reference),
                "sharpness": round(float(cv2.Laplacian(grey, cv2.CV_64F).var()), 4)}


def _distance(levels: Float[np.ndarray, "H W 3"], other: np.ndarray | None) -> float | None:
    """Mean absolute difference; None where there is nothing to compare with."""
    return None if other is None else round(float(np.abs(levels - other).mean()), 4)
