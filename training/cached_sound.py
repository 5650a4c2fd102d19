"""Whether the cached sound is what the conditions of a run read, and what `--network_weights` were trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re

from common.errors import CacheError, raise_all
from common.logs import get_logger
from common.tensorfile import read_header
from dataset.plan import FeatureEntry, TrainingItem, entry_shapes
from networks.formats import LoraFile
from networks.metadata import Origin, heard_by
from wan.audio_presets import OMNIAVATAR, AudioPreset, find_preset
from wan.conditions.base import Condition
from wan.conditions.sound import SILENCE, AudioCondition

log = get_logger(__name__)

MUST_AGREE = {"preset": "--audio_preset", "loudness": "--audio_loudness", "states": "--audio_preset",
              "width": "--wav2vec", "recipe": "--force"}
"""Options of the sound that a network cannot be trained on with another value, and the flag that decides each."""
MAY_DIFFER = ("scope", "padding")
"""Options whose difference is told in a line."""


def sound_options(clips: Sequence[TrainingItem]) -> dict[str, str]:
    """How the cached sound was encoded, from the header of one entry; empty where the clips have none."""
    entry = _entry(clips)
    return {} if entry is None else _options(entry)


def refuse_other_sound(conditions: Mapping[str, Condition], clips: Sequence[TrainingItem], start: LoraFile | None,
                       dataset_config: Path) -> None:
    """CacheError where a condition cannot read the cached sound, or `start` was trained on sound heard otherwise.

    Each problem names the option, what was found, what was expected and the command. What may differ is told in a line.
    """
    entry = _entry(clips)
    hearing = {name: one for name, one in conditions.items() if isinstance(one, AudioCondition)}
    if entry is None or not hearing:
        return
    found = _options(entry)
    recorded = _expected(start)
    problems = [problem for name, one in hearing.items()
                for problem in _unreadable(name, one, entry, found, recorded, dataset_config)]
    if start is not None and any(key.startswith(f"conditions.{name}.") for key in start.conditions for name in hearing):
        problems += [
            f"{flag.removeprefix('--')}: the cached sound has {name} '{found[name]}', and --network_weights "
            f"{start.path.name} was trained with '{value}'. Run: {_command(recorded, found, dataset_config)}"
            for name, flag in MUST_AGREE.items()
            if (value := recorded.get(name)) is not None and name in found and found[name] != value]
        for name in MAY_DIFFER:
            if name in recorded and name in found and found[name] != recorded[name]:
                log.info("note: the cached sound has %s '%s'; %s was trained with '%s' (accepted)", name, found[name],
                         start.path.name, recorded[name])
        _note_other_footage(start, clips, entry)
    raise_all(list(dict.fromkeys(problems)), CacheError, "the cached sound")


def _note_other_footage(start: LoraFile, clips: Sequence[TrainingItem], entry: FeatureEntry) -> None:
    """Tell of another frame rate, and of other weights of the encoder (they may be another copy of the same)."""
    origin = Origin.read(start.metadata)
    path = entry.path or entry.like
    assert path is not None
    weights = origin.encoders.get("audio", {}).get("fingerprint") if origin else None
    if weights and weights != read_header(path)[0].get("encoder"):
        log.warning("%s was trained with other weights than --wav2vec of the cached sound; the result will suffer if "
                    "they are another model and not another copy.", start.path.name)
    rates = sorted({clip.item.fps for clip in clips if clip.item.sound is not None})
    if origin is not None and origin.fps is not None and rates and rates != [origin.fps]:
        text = "/".join(f"{rate:g}" for rate in rates)
        log.info("note: the clips have %s fps; %s was trained at %g fps (accepted)", text, start.path.name, origin.fps)


def _unreadable(name: str, condition: AudioCondition, entry: FeatureEntry, found: Mapping[str, str],
                recorded: Mapping[str, str], dataset_config: Path) -> list[str]:
    """Why a condition cannot read the entries."""
    path = entry.path or entry.like
    assert path is not None
    tensors = {tensor.name: tensor.shape.split() for tensor in entry.spec.tensors}
    if "N" not in tensors["states"]:
        return [f"--audio_preset {found['preset']}: its rows stand at 50 Hz, and the condition '{name}' reads a row "
                f"for each video frame. Run: {_command(recorded or {'preset': OMNIAVATAR.name}, {}, dataset_config)}"]
    problems = []
    states, width = entry_shapes(path)["states"][0][-2:]
    if not condition.fits(states, width):
        problems.append(f"the condition '{name}' reads {condition.wanted_rows} of a frame; the cache of --audio_preset "
                        f"{found['preset']} holds {states} states of width {width}. Run: "
                        f"{_command(recorded, found, dataset_config)} with the encoder of the condition, or leave its "
                        "settings audio_states and audio_width to the cache.")
    if condition.settings.null == SILENCE and SILENCE not in tensors:
        problems.append(f"{name}.null=silence: absent sound is to be encoded silence, and the cache of 'audio' holds "
                        f"none. Run: {_command(found, found, dataset_config)} --audio_silence (or use null=zeros).")
    return problems


def _entry(clips: Sequence[TrainingItem]) -> FeatureEntry | None:
    """An entry of sound; of a clip without sound the one beside it that tells shapes."""
    found = [entry for clip in clips for entry in clip.entries if entry.spec.name == "audio"]
    return next((entry for entry in found if entry.path is not None), found[0] if found else None)


def _options(entry: FeatureEntry) -> dict[str, str]:
    """Options in the entry's header; caches from before there were presets are OmniAvatar's."""
    path = entry.path or entry.like
    assert path is not None
    options = {key.removeprefix("option."): value for key, value in read_header(path)[0].items()
               if key.startswith("option.")}
    return _completed(options)


def _expected(start: LoraFile | None) -> dict[str, str]:
    options = heard_by(start.metadata) if start is not None else {}
    return _completed(options) if options else {}


def _completed(options: dict[str, str]) -> dict[str, str]:
    return {"preset": OMNIAVATAR.name, "loudness": OMNIAVATAR.loudness, **options}


def _command(wanted: Mapping[str, str], found: Mapping[str, str], dataset_config: Path) -> str:
    """The cache script with the flags that make sound of the options `wanted`, else as it is."""
    preset = find_preset(wanted.get("preset", found.get("preset", OMNIAVATAR.name)))
    command = (f"python cache_audio_features.py --dataset_config \"{dataset_config}\" --audio_preset {preset.name} "
               f"--wav2vec FOLDER_OF_{preset.released.rpartition('/')[2]}")
    loudness = wanted.get("loudness", preset.loudness)
    if loudness != preset.loudness:
        command += f" --audio_loudness {'none' if loudness == 'as it is' else loudness.removesuffix(' LUFS')}"
    return command + _kept_flags(found, preset)


def _kept_flags(found: Mapping[str, str], preset: AudioPreset) -> str:
    """Flags of the cache that the command must not change by the way; not those that `preset` has no use for."""
    is_choice = find_preset(found.get("preset", OMNIAVATAR.name)).is_by_frame  # else clip is the only scope
    flags = " --audio_scope clip" if found.get("scope") == "clip" and is_choice else ""
    chunks = re.fullmatch(r"full chunks of (\d+) (frames|tokens), overlap (\d+)", found.get("padding", ""))
    if chunks and preset.pads:
        length = "--chunk_frames" if chunks[2] == "frames" else "--max_tokens"
        flags += f" --audio_padding chunk {length} {chunks[1]} --overlap_frame {chunks[3]}"
    return flags + "".join(f" {flag}" for name, flag in (("silence", "--audio_silence"), ("vad", "--voice_activity"))
                           if name in found)
