"""An item: one source of the dataset with all that decides what is cached of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
import re
from typing import Literal

import xxhash

from common.fingerprint import text_hash
from common.speakers import SPEAKER_REGIONS, Box, speaker_of
from dataset.places import source_stem
from dataset.roles import MASK_ROLES, content_roles, speaker_mask_role
from dataset.rows import FileRef
from dataset.schema import AudioShort, ReferenceRule
from dataset.sources import Clock
from dataset.spans import Span

PICTURE_MODE: Literal["cover"] = "cover"
"""How sources meet a bucket (`common.media.picture`): scaled to cover, centre crop, as in musubi-tuner."""

_STEM_BYTES = 80
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f]')


@dataclass(frozen=True)
class Sound:
    """Where an item's sound comes from; times are seconds on the sound file's own clock."""

    file: FileRef
    content: str
    is_own: bool
    """True: the video's own track, on the picture's clock. False: a file of its own, heard from its first sample."""
    zero_s: float
    """Moment of the sound that belongs to the start of video frame 0."""
    extent_s: tuple[float, float]
    """First and last moment at which there is sound."""
    policy: AudioShort = "error"


@dataclass(frozen=True)
class Item:
    """One source with its caption, side files and clips. Small, frozen and picklable; holds no media."""

    key: str
    """``{stem}-{8 hex}``: the stem of its files' names in the cache."""
    name: str
    """Relative name, for people."""
    where: str
    """File, or list file and line."""
    section: str
    section_index: int
    kind: Literal["image", "video"]
    media: FileRef
    content: str
    """Content hash of the source."""
    caption: str
    clock: Clock
    n_frames: int
    """Frames of the whole source at the clock's rate."""
    picture_start_s: float
    spans: tuple[Span, ...]
    repeats: int
    batch_size: int
    cache: Path
    sound: Sound | None = None
    voices: tuple[Sound, ...] = ()
    """The sounds of the second and further speakers."""
    boxes: tuple[Box, ...] = ()
    """Where each speaker is, if no masks say so; empty for one speaker who is heard everywhere."""
    sides: Mapping[str, tuple[FileRef, ...]] = field(default_factory=dict)
    """Side files by role (`dataset.roles`): control, reference, masks, camera (sounds are in `sound` and `voices`)."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Content hash of control, reference and mask files by their key."""
    reference_rule: ReferenceRule = "first"
    shown_size: tuple[int, int] | None = None
    """(width, height) of the source as shown, before it meets a bucket; masks must have its shape."""

    @property
    def fps(self) -> float:
        """Frames per second of its clips."""
        return self.clock.fps

    @property
    def caption_hash(self) -> str:
        """Hash of the caption as cached."""
        return text_hash(self.caption)

    @property
    def is_checked(self) -> bool:
        """Whether every file that a feature is made from is there; False where the cache's word is taken for it."""
        files = [self.media, *(file for role in content_roles(self.sides) for file in self.sides[role])]
        return all(file.is_present for file in (*files, *(sound.file for sound in self.sounds)))

    @property
    def sounds(self) -> tuple[Sound, ...]:
        """The sound of each speaker."""
        return () if self.sound is None else (self.sound, *self.voices)

    @property
    def region_masks(self) -> dict[str, FileRef]:
        """The masks that the item has, by region: face, lip."""
        return {region: file for role, region in MASK_ROLES.items() if (file := self.side(role)) is not None}

    @property
    def speaker_masks(self) -> tuple[FileRef, ...]:
        """The mask of each speaker, or nothing where boxes say where they are."""
        found = (self.side(speaker_mask_role(speaker)) for speaker in range(1, len(self.sounds) + 1))
        return tuple(file for file in found if file is not None)

    def side(self, role: str) -> FileRef | None:
        """The first side file of a role, or None."""
        files = self.sides.get(role, ())
        return files[0] if files else None

    def has(self, need: str) -> bool:
        """Whether the item can give an encoder the medium `need` (a field of `Media`)."""
        if (speaker := speaker_of(need)) is not None:
            return speaker <= len(self.sounds)
        if need == SPEAKER_REGIONS:
            return bool(self.boxes or self.speaker_masks)
        if need == "region_masks":
            return bool(self.region_masks)
        return need != "control" or self.side("control") is not None

    def reference_frame(self, span: Span) -> int | None:
        """Index of the source frame that is the clip's still reference; None where a file gives it.

        ``random`` and ``random_outside`` draw one frame per clip from the content and the span, so that every machine
        draws the same. Raises ValueError when `random_outside` finds no frame outside the clip.
        """
        if self.side("reference") is not None:
            return None
        if self.kind == "image" or self.reference_rule == "first":
            return span.start
        draw = xxhash.xxh3_64_intdigest(f"{self.content}/{span.start}/{span.frames}/{self.reference_rule}".encode())
        if self.reference_rule == "random":
            return draw % self.n_frames
        outside = self.n_frames - span.frames
        if outside < 1:
            raise ValueError("no frame outside the clip")
        frame = draw % outside
        return frame if frame < span.start else frame + span.frames


def item_key(relative: str) -> str:
    """``{stem}-{8 hex of the relative path}``, safe as a file name everywhere and short enough to be extended.

    Equal stems in two folders, or with two endings, get different keys. The name is never taken apart again.
    """
    stem = _UNSAFE.sub("_", source_stem(relative.rsplit("/", 1)[-1])).strip(" ") or "_"
    short = stem.encode()[:_STEM_BYTES].decode("utf-8", "ignore")
    return f"{short}-{xxhash.xxh3_64_hexdigest(relative.encode())[:8]}"
