"""From a row to an item: its clips at a size and a rate, or the reason why it gives none."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from common.speakers import Box, audio_feature, parse_box, side_by_side
from dataset.buckets import Buckets
from dataset.config import Section
from dataset.items import Item, Sound, item_key
from dataset.roles import content_roles, is_sound, is_speaker_mask
from dataset.rows import Row
from dataset.schema import AudioShort, Entry, VideoEntry
from dataset.sound import missing_frames, uncovered, usable_frames
from dataset.sources import Clock, Facts
from dataset.spans import Span

Known = Mapping[str, Facts | str]
"""Facts by the file's key, or why a file cannot be read."""


@dataclass(frozen=True)
class Dropped:
    """A source that gives no clip, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Rules:
    """How the clips of one entry are cut."""

    clock: Clock
    buckets: Buckets
    policy: AudioShort


@dataclass
class Outcome:
    """What came of the rows so far."""

    items: list[Item] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    failed: list[Dropped] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def cut(row: Row, section: Section, rules: Rules, known: Known, outcome: Outcome) -> None:
    """Add the item of `row` to `outcome`, or the reason why there is none."""
    unread = _unread(row, known)
    if unread and not row.media.is_present:
        # An absent source that the cache cannot judge is the user's to bring; a broken one costs only itself.
        outcome.problems += [f"{row.label}: {reason}. Bring the file back." for reason in unread]
    elif unread:
        outcome.failed.append(Dropped(row.media.key, unread[0]))
    if unread:
        return
    facts = cast(Facts, known[row.media.key])
    size = rules.buckets.choose(facts.width, facts.height)
    if not all(size):
        reason = (f"{facts.width}x{facts.height} pixels, below {rules.buckets.multiple}; take it out, or let it be "
                  "enlarged (bucket_no_upscale = false)")
        outcome.dropped.append(Dropped(row.media.key, reason))
        return
    item = _item(row, section, rules, known)
    if "audio" in row.sides and item.sound is None:
        outcome.problems.append(f"{row.label}: sound is asked for, and the file has no sound track. Give it a "
                                "sound file (audio_directory, audio_path), or move it to an entry with "
                                "audio = \"none\".")
        return
    if problem := _speaker_problem(item, row):
        outcome.problems.append(problem)
        return
    _add_clips(item, section, size, outcome)


def _speaker_problem(item: Item, row: Row) -> str:
    """What is wrong with the number of places that are given for speakers."""
    masks = sum(is_speaker_mask(role) for role in item.sides)
    places, sounds = masks or len(item.boxes), len(item.sounds)
    if not places or places == sounds:
        return ""
    return (f"{row.label}: {places} {'masks' if masks else 'boxes'} of speakers and {sounds} "
            f"{'sound' if sounds == 1 else 'sounds'}. Give each speaker a sound and a place, in the same order.")


def _unread(row: Row, known: Known) -> list[str]:
    sides = [file for role, files in row.sides.items() if is_sound(role) or content_roles([role]) for file in files]
    return [answer for file in (row.media, *sides) if isinstance(answer := known[file.key], str)]


def _add_clips(item: Item, section: Section, size: tuple[int, int], outcome: Outcome) -> None:
    first, end = 0, item.n_frames
    for sound in item.sounds:
        if sound.policy == "trim":
            own_first, own_end = usable_frames(sound, item.fps, item.n_frames)
            first, end = max(first, own_first), min(end, own_end)
    end = max(first, end)
    extraction = section.entry.extraction
    spans = tuple(Span(first + start, frames, *size) for start, frames in extraction.cuts(end - first))
    if not spans:
        what = "frames with sound" if end - first < item.n_frames else "frames"
        outcome.dropped.append(Dropped(item.name, f"{end - first} {what} at {item.fps:g} fps; the shortest target is "
                                       f"{extraction.shortest}"))
        return
    item = replace(item, spans=spans)
    outcome.problems += [*_sound_problems(item), *_reference_problems(item)]
    outcome.items.append(item)


def _item(row: Row, section: Section, rules: Rules, known: Known) -> Item:
    entry = section.entry
    facts = cast(Facts, known[row.media.key])
    contents = {file.key: cast(Facts, known[file.key]).content for role in content_roles(row.sides)
                for file in row.sides[role]}
    sounds = _sounds(row, facts, rules.policy, known)
    return Item(
        key=item_key(row.media.key), name=row.media.key, where=row.label,
        section=section.name, section_index=section.index, kind=entry.kind, media=row.media, content=facts.content,
        caption=row.caption, clock=rules.clock, picture_start_s=facts.start_s, spans=(),
        n_frames=facts.frames[rules.clock.name] if entry.kind == "video" else 1,
        repeats=entry.num_repeats, batch_size=entry.batch_size, cache=section.places.cache,
        sound=sounds[0] if sounds else None, voices=sounds[1:], boxes=_boxes(row, entry, len(sounds)),
        contents=contents, sides={role: files for role, files in row.sides.items() if not is_sound(role)},
        reference_rule=entry.reference if isinstance(entry, VideoEntry) else "first",
        shown_size=(facts.width, facts.height))


def _boxes(row: Row, entry: Entry, sounds: int) -> tuple[Box, ...]:
    """Boxes of the row, else of the entry; several speakers without boxes and masks stand side by side."""
    if getattr(entry, "audio", None) == "none" or any(is_speaker_mask(role) for role in row.sides):
        return ()
    written = row.boxes or tuple(getattr(entry, "speaker_boxes", None) or ())
    if not written:
        return tuple(side_by_side(sounds)) if sounds > 1 else ()
    return tuple(parse_box(text) for text in written)


def _sounds(row: Row, facts: Facts, policy: AudioShort, known: Known) -> tuple[Sound, ...]:
    """The sound of each speaker, from the first; empty where the file of the first has no sound track."""
    found: list[Sound] = []
    while (role := audio_feature(len(found) + 1)) in row.sides:
        file = row.sides[role][0]
        heard = cast(Facts, known[file.key])
        if heard.sound is None:
            break
        is_own = file == row.media
        zero_s = facts.start_s if is_own else heard.sound[0]
        found.append(Sound(file, heard.content, is_own, zero_s, heard.sound, policy))
    return tuple(found)


def _sound_problems(item: Item) -> list[str]:
    problems = []
    for sound in item.sounds:
        short = uncovered(sound, item.fps, item.spans) if sound.policy == "error" else []
        if short:
            worst = max(missing_frames(sound, item.fps, span) for span in short)
            which = f" {sound.file.path.name}" if item.voices else ""
            problems.append(
                f"{item.where}: the sound{which} misses {worst:.1f} frames ({worst / item.fps:.2f} s) of a clip of "
                f"{short[0].frames}. Choose --audio_short silence (fill it) or trim (use the covered part), or the key "
                "audio_short in the dataset file.")
    return problems


def _reference_problems(item: Item) -> list[str]:
    try:
        for span in item.spans:
            item.reference_frame(span)
    except ValueError:
        return [f"{item.where}: reference = \"random_outside\", but the clip is the whole source ({item.n_frames} "
                "frames). Use \"random\", or shorter target_frames."]
    return []
