"""What an entry's header says, and whether it says what this run would write."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import UserError
from common.speakers import SPEAKER_REGIONS, box_texts, speaker_of
from common.tensorfile import read_header
from dataset.items import PICTURE_MODE, Item
from dataset.jobs import FeatureJob
from dataset.spans import Span

WRITER = "omnituner 1"
"""Raised when the same sources and encoder would give other entries: another way to pick frames, another resampler."""

_PICTURES = frozenset({"frames", "control", "reference", "region_masks", SPEAKER_REGIONS})
_MEANINGS = {
    "file": "the file", "writer": "the program's way of writing", "feature": "the feature", "version": "its version",
    "encoder": "the encoder's weights", "needs": "what it is made from", "source": "the source file",
    "clock": "the frame rate", "start": "the first frame", "frames": "the number of frames", "size": "the size",
    "picture_mode": "how pictures meet the size", "control": "the control file", "reference": "the reference picture",
    "caption": "the caption", "audio": "the sound file", "mask.face": "the face mask", "mask.lip": "the lip mask",
    "speakers": "where the speakers are",
}


@dataclass(frozen=True)
class EntryState:
    """Whether an entry may be used, and if not, which field of its header differs."""

    kind: Literal["fresh", "unchecked", "stale", "missing"]
    """`unchecked`: all equal, but the source is not there to be compared."""
    field: str = ""
    found: str = ""
    expected: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether training may read the entry."""
        return self.kind in ("fresh", "unchecked")

    @property
    def reason(self) -> str:
        """Why the entry is not used, for people."""
        if self.kind != "stale":
            return self.kind
        option = self.field.removeprefix("option.")
        meaning = _MEANINGS.get(self.field, f"the encoder's option '{option}'")
        return f"{meaning} differs ({self.field}: {_short(self.found)}, now {_short(self.expected)})"


def expected_header(item: Item, span: Span | None, job: FeatureJob) -> dict[str, str]:
    """The header that this run would write for one entry: encoder, options, and all that the needed media depend on."""
    return {
        "writer": WRITER, "feature": job.spec.name, "version": str(job.spec.version), "encoder": job.fingerprint,
        **{f"option.{name}": str(value) for name, value in sorted(job.options.items())},
        "needs": ",".join(job.needs), **_source_fields(item, span, job.needs)}


def _source_fields(item: Item, span: Span | None, needs: tuple[str, ...]) -> dict[str, str]:
    fields: dict[str, str] = {}
    heard = [speaker for need in needs if (speaker := speaker_of(need)) is not None]
    if "frames" in needs or heard:
        fields["source"] = item.content
    if (_PICTURES & set(needs) or heard) and item.kind == "video":
        fields["clock"] = item.clock.name
    if span is not None:
        fields |= {"start": str(span.start), "frames": str(span.frames)}
    if span is not None and _PICTURES & set(needs):
        fields |= {"size": f"{span.width}x{span.height}", "picture_mode": PICTURE_MODE}
    if "control" in needs and (control := item.side("control")) is not None:
        fields["control"] = item.contents[control.key]
    if "reference" in needs and span is not None:
        fields["reference"] = _reference(item, span)
    if "caption" in needs:
        fields["caption"] = item.caption_hash
    for sound in (item.sounds[speaker - 1] for speaker in heard if speaker <= len(item.sounds)):
        fields["audio"] = "own track" if sound.is_own else sound.content
    if "region_masks" in needs:
        fields |= {f"mask.{region}": item.contents[file.key] for region, file in item.region_masks.items()}
    if SPEAKER_REGIONS in needs:
        masks = " ".join(item.contents[file.key] for file in item.speaker_masks)
        fields["speakers"] = f"masks {masks}" if masks else f"boxes {box_texts(item.boxes)}"
    return fields


def _reference(item: Item, span: Span) -> str:
    frame = item.reference_frame(span)
    if frame is not None:
        return f"frame {frame} of {item.content}"
    file = item.side("reference")
    assert file is not None
    return item.contents[file.key]


def compare(path: Path, expected: Mapping[str, str], *, is_checked: bool = True) -> EntryState:
    """State of the entry at `path` against the header that it should have. `is_checked`: the source is there."""
    if not path.is_file():
        return EntryState("missing")
    try:
        found, _ = read_header(path)
    except (UserError, OSError):
        return EntryState("stale", "file", "damaged", "whole")
    for field in (*expected, *(name for name in found if name not in expected)):
        if found.get(field) != expected.get(field):
            return EntryState("stale", field, found.get(field, "nothing"), expected.get(field, "nothing"))
    return EntryState("fresh" if is_checked else "unchecked")


def _short(value: str) -> str:
    return value if len(value) <= 24 else f"{value[:8]}…"
