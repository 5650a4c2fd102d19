"""How the sound of a generation is heard: as the network's training heard it, unless the user says otherwise."""

from collections.abc import Mapping
from pathlib import Path

from common.errors import ConfigError, NetworkFileError, nearest
from common.logs import get_logger
from inference.adapters import Adapters
from inference.request import GenerationRequest
from networks.metadata import heard_by
from wan.audio_presets import OMNIAVATAR, PRESETS, AudioPreset, find_preset
from wan.conditions.base import Condition
from wan.conditions.registry import find_condition
from wan.conditions.sound import AudioCondition
from wan.encoders.audio import audio_facts
from wan.encoders.audio_features import RECIPE

log = get_logger(__name__)


def told_by(adapters: Adapters) -> tuple[str, Mapping[str, str]]:
    """Name of the file whose condition hears, and the options of the sound that it was trained on."""
    for name, (file, _) in adapters.conditions.items():
        if "audio" in find_condition(name).features:
            return file.path.name, heard_by(file.metadata)
    return "", {}


def preset_for(adapters: Adapters, request: GenerationRequest) -> AudioPreset:
    """`--audio_preset`, else the recorded preset, else OmniAvatar's; at the recorded loudness where they agree."""
    path, told = told_by(adapters)
    recorded = told.get("preset", OMNIAVATAR.name)
    if recorded not in PRESETS:
        raise NetworkFileError(f"{path}: was trained on sound heard with the preset '{recorded}'"
                               f"{nearest(recorded, PRESETS)}, which this version does not know. Known: "
                               f"{', '.join(PRESETS)}. Update OmniTuner.")
    if request.audio_preset in (None, recorded):
        return find_preset(recorded, told.get("loudness"))
    assert request.audio_preset is not None
    if told:
        log.warning("--audio_preset %s: %s was trained with %s; the result will suffer unless you know better",
                    request.audio_preset, path, recorded)
    elif path:
        log.info("--audio_preset %s: %s does not tell how the sound of its training was heard", request.audio_preset,
                 path)
    return find_preset(request.audio_preset)


def fills_chunks(adapters: Adapters) -> bool:
    """Whether the training heard its sound padded to full chunks."""
    return told_by(adapters)[1].get("padding", "").startswith("full chunks")


def refuse_other_rows(conditions: Mapping[str, Condition], folder: Path, preset: AudioPreset) -> None:
    """ConfigError where a condition cannot read what the encoder in `folder` gives; only config.json is looked at."""
    facts = audio_facts(folder, preset)
    for name, condition in conditions.items():
        if not isinstance(condition, AudioCondition):
            continue
        if not preset.is_by_frame:
            raise ConfigError(f"--audio_preset {preset.name}: it keeps rows at 50 Hz, and the condition '{name}' reads "
                              "a row for each video frame. Use the preset that it was trained with.")
        if not condition.fits(facts["states"], facts["width"]):
            raise ConfigError(f"--wav2vec {folder}: with --audio_preset {preset.name} it gives {facts['states']} "
                              f"states of width {facts['width']}; the condition '{name}' reads {condition.wanted_rows}"
                              f". Give the encoder that it was trained with (the preset's own is {preset.released}).")


def note_other_hearing(adapters: Adapters) -> None:
    """Tell in a line how the sound of the training was heard otherwise: differences that are allowed."""
    path, told = told_by(adapters)
    if told.get("scope") == "clip":
        log.info("note: %s was trained on clips that were heard alone (--audio_scope clip); here the whole sound is "
                 "heard", path)
    if told.get("recipe", RECIPE) != RECIPE:
        log.warning("%s was trained on sound encoded by an earlier recipe (%s, now %s)", path, told["recipe"], RECIPE)
