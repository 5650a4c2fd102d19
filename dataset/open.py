"""From a dataset TOML to items: every source looked at, clips cut, what does not fit told with its reason."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from common.errors import ConfigError, raise_all
from common.timebase import latent_frame_count
from dataset.buckets import Buckets
from dataset.config import DatasetConfig, Section
from dataset.cutting import Dropped, Known, Outcome, Rules, cut
from dataset.index import update_index
from dataset.items import Item
from dataset.roles import content_roles, is_sound, is_speaker_mask
from dataset.rows import Row, row_data
from dataset.schema import SPEECH_FPS, WAN_FPS, AudioShort, VideoEntry
from dataset.sound import missing_frames
from dataset.sources import Clock, Facts, Inquiry, look_up
from dataset.spans import Span

_AUDIBLE_FRAMES = 0.05
"""Missing sound below this part of a frame is not worth a word."""


@dataclass(frozen=True)
class Dataset:
    """The items of a dataset TOML, sorted as the TOML and its folders are."""

    config: DatasetConfig
    items: tuple[Item, ...]
    dropped: tuple[Dropped, ...] = ()
    """Too short or too small; the run goes on without them."""
    failed: tuple[Dropped, ...] = ()
    """Cannot be read. Caching goes on with the others and ends with exit code 1; training refuses to start."""
    notes: tuple[str, ...] = ()
    multiple: int = 16
    """Width and height are multiples of this many pixels; a latent pixel covers half of it."""

    @property
    def path(self) -> Path:
        """The dataset TOML."""
        return self.config.path

    @property
    def cache_directories(self) -> tuple[Path, ...]:
        """Cache folder of each entry."""
        return tuple(section.places.cache for section in self.config.sections)

    @property
    def speakers(self) -> int:
        """Speakers of the clip that has most of them."""
        return max((len(item.sounds) for item in self.items), default=0)

    def sizes(self, item: Item, span: Span | None) -> dict[str, int]:
        """Lengths of the letters in feature shapes: F, H, W of the latents and N video frames."""
        if span is None:
            return {"N": item.n_frames}
        stride = self.multiple // 2
        return {"F": latent_frame_count(span.frames), "H": span.height // stride, "W": span.width // stride,
                "N": span.frames}


def open_dataset(config: DatasetConfig, *, variant_multiple: int = 16, require_media: bool = False,
                 audio_short: AudioShort | None = None) -> Dataset:
    """Look at every source (or at what the cache remembers of it) and cut the clips.

    `variant_multiple`: what width and height must be multiples of (16; 32 for Wan 2.2 TI2V). `require_media` refuses
    sources that are absent. `audio_short` overrides the TOML's policy and is remembered, so that every later script
    sees the same clips. Raises ConfigError with all problems: sound that is asked for and not there or too short,
    sources that are absent and unknown, nothing left to train on.
    """
    outcome = Outcome(notes=list(config.notes))
    for section in config.sections:
        _open_section(section, outcome, variant_multiple, audio_short)
    if require_media:
        outcome.problems += [f"{item.where}: not there, and the sources are required." for item in outcome.items
                             if not item.is_checked]
    raise_all(outcome.problems, ConfigError, str(config.path))
    if not outcome.items:
        reasons = [f"{one.name}: {one.reason}" for one in (*outcome.failed, *outcome.dropped)]
        raise_all(reasons, ConfigError, f"{config.path}: no source gives a clip")
    return Dataset(config, tuple(outcome.items), tuple(outcome.dropped), tuple(outcome.failed),
                   tuple(dict.fromkeys(outcome.notes)), variant_multiple)


def _open_section(section: Section, outcome: Outcome, multiple: int, audio_short: AudioShort | None) -> None:
    entry = section.entry
    rows = [_with_sound_choice(row, section) for row in section.rows]
    buckets = Buckets(entry.resolution, entry.enable_bucket, entry.bucket_no_upscale, multiple)
    (width, height), (w, h) = entry.resolution, buckets.sizes[0] if buckets.sizes else (0, 0)
    if not (w and h):
        outcome.problems.append(f"'{section.name}': resolution {width}x{height} is too small for multiples of "
                                f"{multiple}.")
        return
    if not entry.enable_bucket and (w, h) != (width, height):
        outcome.notes.append(f"'{section.name}': resolution {width}x{height} becomes {w}x{h}, multiples of {multiple}.")
    clock = _clock(section, rows, outcome)
    known = look_up(_inquiries(section, rows, clock), section.places.cache)
    rules = Rules(clock, buckets, _policy(section, audio_short))
    for row in rows:
        cut(row, section, rules, known, outcome)
    _tell_oddities(section, rows, known, outcome)
    _remember(section, audio_short)


def _with_sound_choice(row: Row, section: Section) -> Row:
    """The row with its `audio` side set to the file that is heard, or without one."""
    entry = section.entry
    sides = dict(row.sides)
    if not isinstance(entry, VideoEntry) or entry.audio == "none":
        sides = {role: files for role, files in sides.items() if not is_sound(role) and not is_speaker_mask(role)}
    elif "audio" not in sides and entry.audio == "clip":
        sides["audio"] = (row.media,)
    return replace(row, sides=sides)


def _policy(section: Section, audio_short: AudioShort | None) -> AudioShort:
    entry = section.entry
    own = entry.audio_short if isinstance(entry, VideoEntry) else None
    return audio_short or own or cast(AudioShort, section.places.index.audio_short) or "error"


def _clock(section: Section, rows: Sequence[Row], outcome: Outcome) -> Clock:
    entry = section.entry
    if not isinstance(entry, VideoEntry):
        return Clock(WAN_FPS)
    has_sound = any("audio" in row.sides for row in rows)
    if entry.source_fps is not None:
        if has_sound:
            outcome.problems.append(
                f"'{section.name}': source_fps with sound: musubi-tuner's rule drops frames by index and loses the "
                "clock that picture and sound share. Use target_fps in its place.")
        outcome.notes.append(f"'{section.name}': source_fps {entry.source_fps:g} means musubi-tuner's rule: frames are "
                             "dropped by index to reach 16 fps and never repeated; time stamps are not looked at.")
        return Clock(WAN_FPS, entry.source_fps)
    if entry.target_fps is not None:
        return Clock(entry.target_fps)
    fps = SPEECH_FPS if has_sound else WAN_FPS
    outcome.notes.append(f"'{section.name}': clips at {fps:g} fps by time stamps (target_fps is not set, the entry is "
                         f"{'with' if has_sound else 'without'} sound).")
    return Clock(fps)


def _inquiries(section: Section, rows: Sequence[Row], clock: Clock) -> list[Inquiry]:
    found: dict[str, Inquiry] = {}
    for row in rows:
        sound = row.sides.get("audio", (None,))[0]
        if section.kind == "video":
            found[row.media.key] = Inquiry(row.media, "video", clock, with_sound=sound == row.media)
        else:
            found[row.media.key] = Inquiry(row.media, "image")
        found |= {file.key: Inquiry(file, "sound") for role, files in row.sides.items() if is_sound(role)
                  for file in files if file != row.media}
        for role in content_roles(row.sides):
            found |= {file.key: Inquiry(file, "bytes") for file in row.sides[role]}
    return list(found.values())


def _tell_oddities(section: Section, rows: Sequence[Row], known: Known, outcome: Outcome) -> None:
    """One line for each kind of oddity that was put right while reading."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        facts = known[row.media.key]
        for note in facts.notes if isinstance(facts, Facts) else ():
            found[note].append(row.media.key)
    outcome.notes += [f"'{section.name}': {_sources(names)}: {note}." for note, names in found.items()]
    ends = [item.name for item in outcome.items if item.section_index == section.index
            and any(missing_frames(sound, item.fps, span) > _AUDIBLE_FRAMES for sound in item.sounds
                    for span in item.spans)]
    if ends:
        outcome.notes.append(f"'{section.name}': {_sources(ends)}: the sound begins or ends inside a clip; "
                             "silence stands for what is missing.")


def _sources(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} sources ({names[0]}, …)"


def _remember(section: Section, audio_short: AudioShort | None) -> None:
    """Keep the rows for a day without the media, and a policy that decides which clips exist."""
    old = section.places.index
    rows = [row_data(row) for row in section.rows]
    is_read = any(row.media.is_present for row in section.rows) and rows != [dict(row) for row in old.rows]
    if not is_read and audio_short in (None, old.audio_short):
        return

    def change(index: dict[str, Any]) -> None:
        if is_read:
            index["rows"] = rows
        if audio_short is not None:
            index["audio_short"] = audio_short

    update_index(section.places.cache, change)
