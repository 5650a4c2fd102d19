"""What a network file says about itself: kohya's `ss_*`, the model spec, hashes, and our own `omnituner.*` keys.

Safetensors metadata are texts; everything is turned into text here, nested values into JSON.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
import hashlib
import json
from typing import Any

from torch import Tensor

from common.version import VERSION
from networks.condition_weights import METADATA_KEY as CONDITIONS_KEY

SS_KEYS = (
    "session_id", "training_started_at", "training_finished_at", "output_name", "learning_rate", "num_train_items",
    "num_batches_per_epoch", "num_epochs", "epoch", "steps", "gradient_checkpointing",
    "gradient_checkpointing_cpu_offload", "gradient_accumulation_steps", "max_train_steps", "lr_warmup_steps",
    "lr_scheduler", "base_model_version", "network_module", "network_dim", "network_alpha", "network_args",
    "network_dropout", "mixed_precision", "seed", "training_comment", "optimizer", "max_grad_norm", "fp8_base",
    "full_fp16", "full_bf16", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "guidance_scale",
    "timestep_sampling", "sigmoid_scale", "discrete_flow_shift", "min_timestep", "max_timestep", "datasets",
    "sd_model_name", "vae_name",
)
"""kohya's names without `ss_`, with min_timestep and max_timestep, which musubi-tuner does not record."""

KEPT_WITHOUT_METADATA = ("ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha",
                         "ss_network_args", CONDITIONS_KEY, "omnituner.variant", "omnituner.encoders", "omnituner.fps",
                         "omnituner.picture_mode")
"""With `--no_metadata`: what a reader needs to load the file, and to hear and see as its training did."""

ARCHITECTURE = "wan2.1/lora"
IMPLEMENTATION = "https://github.com/Wan-Video/Wan2.1"


@dataclass(frozen=True)
class ModelSpec:
    """The part of the metadata that a person reads (`modelspec.*`, the SAI model specification)."""

    title: str
    resolution: tuple[int, int] | None = None
    """Largest (width, height) that was trained on."""
    author: str | None = None
    description: str | None = None
    license: str | None = None
    tags: str | None = None
    timestep_range: tuple[float, float] | None = None
    architecture: str = ARCHITECTURE

    def text(self, now: datetime) -> dict[str, str]:
        """As metadata."""
        entries: dict[str, Any] = {
            "sai_model_spec": "1.0.0",
            "architecture": self.architecture,
            "implementation": IMPLEMENTATION,
            "title": self.title,
            "date": now.replace(microsecond=0, tzinfo=None).isoformat(),
            "resolution": self.resolution and f"{self.resolution[0]}x{self.resolution[1]}",
            "author": self.author, "description": self.description, "license": self.license, "tags": self.tags,
            "timestep_range": self.timestep_range and ",".join(f"{time:g}" for time in self.timestep_range),
        }
        return {f"modelspec.{key}": str(value) for key, value in entries.items() if value is not None}


@dataclass(frozen=True)
class Origin:
    """What the file was made with, as far as generation must know it (`omnituner.*`)."""

    task: str | None = None
    variant: Mapping[str, Any] = field(default_factory=dict)
    """Widths and family of the base, to refuse another base by."""
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Trained conditions with their settings as text."""
    encoders: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints and options of the encoders by feature."""
    fps: float | None = None
    """Frame rate of the training clips."""
    picture_mode: str | None = None
    """How pictures were brought to size (`cover`, …); generation uses the same."""
    showing: Mapping[str, Any] = field(default_factory=dict)
    """What clips were shown with in training: given frames, dropouts and what stood for what was dropped."""
    ema_decay: float | None = None
    """Decay of the average of the trained weights that the file holds; None: the weights themselves."""
    version: str = VERSION

    def text(self) -> dict[str, str]:
        """As metadata; what is not known is left out."""
        return {f"omnituner.{key}": value if isinstance(value, str) else json.dumps(value, sort_keys=True)
                for key, value in asdict(self).items() if value not in (None, {})}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Origin | None":
        """From a file's metadata; None when the file is not ours."""
        own = {key.removeprefix("omnituner."): text for key, text in metadata.items() if key.startswith("omnituner.")}
        if not own:
            return None
        known: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            if name in own:
                known[name] = own[name] if name in ("task", "picture_mode", "version") else json.loads(own[name])
        return cls(**known)


def heard_by(metadata: Mapping[str, str]) -> dict[str, str]:
    """How the sound of a file's training was encoded: options of the feature `audio`; empty where no file tells."""
    origin = Origin.read(metadata)
    return dict(origin.encoders.get("audio", {}).get("options", {})) if origin else {}


def _as_text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)


def training_metadata(facts: Mapping[str, Any], spec: ModelSpec, origin: Origin, *, minimal: bool = False,
                      now: datetime | None = None) -> dict[str, str]:
    """All metadata of a trained network but the hashes.

    `facts` are plain values under the names of SS_KEYS (numbers, texts, None, or nested values, which become JSON).
    `minimal` (`--no_metadata`) keeps the model spec and what a reader cannot do without.
    """
    unknown = set(facts) - set(SS_KEYS)
    assert not unknown, f"no kohya metadata of this name: {sorted(unknown)}"
    metadata = {f"ss_{key}": _as_text(facts[key]) for key in SS_KEYS if key in facts} | origin.text()
    if minimal:
        metadata = {key: value for key, value in metadata.items() if key in KEPT_WITHOUT_METADATA}
    return metadata | spec.text(now or datetime.now(UTC))


def hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`sshs_model_hash` (SHA-256 of the tensor bytes) and `sshs_legacy_hash`, by which web UIs know a file.

    kohya's rule: both are taken from the file as it would be with the `ss_*` metadata alone.
    """
    from safetensors.torch import save

    immutable = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, metadata=immutable)
    start = 8 + int.from_bytes(data[:8], "little")
    return {"sshs_model_hash": hashlib.sha256(memoryview(data)[start:]).hexdigest(),
            "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8]}
