"""The LoRA files of a request: what they change, which conditions they carry, and what they were trained at."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

from torch import Tensor

from common.errors import ConfigError, NetworkFileError
from common.logs import get_logger
from inference.request import GenerationRequest
from networks.condition_weights import load_conditions, recorded_conditions, split_by_condition
from networks.formats import LoraFile, read_lora
from networks.merge import LoraMerge
from networks.metadata import Origin
from networks.names import kohya_name, spellings
from wan.conditions.base import Condition
from wan.conditions.registry import build_condition, find_condition, refuse_mixture
from wan.conditions.sound import SILENCE
from wan.variants import Variant

if TYPE_CHECKING:
    from wan.modules.dit import WanDiT

log = get_logger(__name__)


@dataclass(frozen=True)
class Adapters:
    """LoRA files with their multipliers, and the conditions inside them by name."""

    files: tuple[tuple[LoraFile, float], ...] = ()
    conditions: Mapping[str, tuple[LoraFile, Mapping[str, str]]] = field(default_factory=dict)
    """Condition's name → the file that holds it, and its settings as text."""
    lent: Mapping[str, Condition] | None = None
    """The conditions where they are in memory already; None where they are built from the files."""

    @property
    def features(self) -> tuple[str, ...]:
        """Features that the conditions read."""
        names = [feature for name in self.conditions for feature in find_condition(name).features]
        return tuple(dict.fromkeys(names))

    @property
    def starts_from_picture(self) -> bool:
        """Whether a condition has the clip begin with the reference picture."""
        return any(find_condition(name).starts_from_picture for name in self.conditions)

    @property
    def hears_silence(self) -> bool:
        """Whether a condition takes encoded silence for absent sound (its setting `null`)."""
        return any(settings.get("null") == SILENCE for _, settings in self.conditions.values())

    @property
    def is_omniavatar(self) -> bool:
        """Whether OmniAvatar's own file is among them: its sizes, sampler and sound timing are then the defaults."""
        return any(file.layout == "OmniAvatar" for file, _ in self.files)

    @property
    def fps(self) -> float | None:
        """Frame rate of the footage that the files were trained on; None when no file tells."""
        return self._told("fps")

    @property
    def picture_mode(self) -> str | None:
        """How pictures met their size in training; None when no file tells."""
        return self._told("picture_mode")

    def _told(self, name: str) -> Any:
        origins = {file.path.name: Origin.read(file.metadata) for file, _ in self.files}
        told = {path: getattr(origin, name) for path, origin in origins.items() if origin and getattr(origin, name)}
        if len(set(told.values())) > 1:
            texts = ", ".join(f"{value} ({path})" for path, value in told.items())
            log.warning("the LoRA files were trained at different %s: %s; the first is used", name, texts)
        return next(iter(told.values()), None)

    def build_conditions(self, variant: Variant) -> dict[str, Condition]:
        """The conditions with their trained weights, frozen, on the CPU in float32; those that are lent as they are."""
        if self.lent is not None:
            return dict(self.lent)
        built = {}
        for name, (file, settings) in self.conditions.items():
            condition = build_condition(name, settings, variant)
            own = {key: tensor for key, tensor in file.conditions.items() if name in split_by_condition({key: tensor})}
            load_conditions({name: condition}, own, file.path)
            built[name] = condition.requires_grad_(False).eval()
        return built


def read_adapters(request: GenerationRequest, module_paths: Iterable[str], base: Callable[[str], Tensor]) -> Adapters:
    """Read every `--lora_weight` and keep what the patterns leave of it.

    `module_paths` are the dotted names of the base's modules, `base(name)` gives one of its parameters. Raises
    NetworkFileError for a file that cannot be read, of which the patterns leave nothing, or that brings a condition
    that another file brings too; ConditionError for two conditions that cannot stand beside each other.
    """
    paths = list(module_paths)
    files: list[tuple[LoraFile, float]] = []
    conditions: dict[str, tuple[LoraFile, Mapping[str, str]]] = {}
    for path, multiplier in zip(request.lora_weight, request.multipliers(), strict=True):
        file = _selected(read_lora(path).relative_to(base), paths, request)
        files.append((file, multiplier))
        settings = recorded_conditions(file.metadata)
        for name in split_by_condition(file.conditions):
            if name in conditions:
                raise NetworkFileError(f"{file.path}: brings the condition '{name}', and so does "
                                       f"{conditions[name][0].path}. Give one of the two.")
            find_condition(name)
            conditions[name] = (file, settings.get(name, {}) | gain_for(name, request))
    refuse_mixture(conditions)
    if request.audio_gain is not None and not any("audio" in find_condition(name).features for name in conditions):
        raise ConfigError(f"--audio_gain {request.audio_gain}: no file of --lora_weight has an audio condition that it "
                          "could act on. Leave it out.")
    return Adapters(tuple(files), conditions)


def adapters_in_training(path: Path, metadata: Mapping[str, str], conditions: Mapping[str, Condition]) -> Adapters:
    """What a network that is being trained brings, as if it were saved to `path` with `metadata`; its file is not read.

    `conditions` are the trainer's own.
    """
    file = LoraFile(path, "OmniTuner", {}, {}, [], dict(metadata))
    told = recorded_conditions(metadata)
    return Adapters(((file, 1.0),), {name: (file, told.get(name, {})) for name in conditions}, lent=dict(conditions))


def gain_for(name: str, request: GenerationRequest) -> dict[str, str]:
    """`--audio_gain` as a setting of a condition that hears."""
    hears = request.audio_gain is not None and "audio" in find_condition(name).features
    return {"audio_gain": str(request.audio_gain)} if hears else {}


def _selected(file: LoraFile, paths: list[str], request: GenerationRequest) -> LoraFile:
    """The file without the modules that `--include_patterns` do not name or `--exclude_patterns` do."""
    include = [re.compile(pattern) for pattern in request.include_patterns]
    exclude = [re.compile(pattern) for pattern in request.exclude_patterns]
    if not include and not exclude:
        return file

    def matches(patterns: list[re.Pattern[str]], path: str) -> bool:
        return any(pattern.search(name) for pattern in patterns for name in (path, kohya_name(path)))

    dropped = {name for path in paths for name in spellings(path)
               if (include and not matches(include, path)) or matches(exclude, path)}
    entries = {name: entry for name, entry in file.entries.items() if name not in dropped}
    if file.entries and not entries:
        raise ConfigError(f"--include_patterns and --exclude_patterns leave nothing of {file.path}. Patterns are "
                          "searched in names such as blocks.0.self_attn.q.")
    log.info("%s: the patterns leave %d of %d modules", file.path.name, len(entries), len(file.entries))
    return replace(file, entries=entries)


def refuse_misfits(adapters: Adapters, empties: Mapping[str, Tensor]) -> None:
    """NetworkFileError for a file that does not fit the base, whose parameters `empties` may lie on the meta device.

    Merging on to empty tensors computes shapes and nothing else.
    """
    merge = LoraMerge(adapters.files)
    for name, empty in empties.items():
        merge(name, empty)
    merge.reports()


def attach_to(dit: "WanDiT", adapters: Adapters) -> None:
    """Run the files beside the loaded base (`--lora_attach`)."""
    from networks.attach import attach_lora

    for file, multiplier in adapters.files:
        if file.entries:
            _, report = attach_lora(dit, file, multiplier)
            log.info("%s", report.text())
