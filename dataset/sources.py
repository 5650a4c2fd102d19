"""What is known about each source file: looked at once, and remembered in the cache directory."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from common.errors import MediaError
from common.fingerprint import content_hash
from common.progress import progress
from dataset.index import CacheIndex, alone_in, update_index
from dataset.rows import FileRef

MediaKind = Literal["image", "video", "sound", "bytes"]
_CHUNK = 64
_THREADS = 4


@dataclass(frozen=True)
class Clock:
    """How frames are taken from a video: resampled to `fps` by time stamps, or by musubi-tuner's `source_fps` rule."""

    fps: float
    source_fps: float | None = None

    @property
    def name(self) -> str:
        """Text for cache headers, such as ``25`` or ``16 (source_fps 30)``."""
        return f"{self.fps:.10g}" + (f" (source_fps {self.source_fps:.10g})" if self.source_fps else "")


@dataclass(frozen=True)
class Inquiry:
    """What the dataset wants to know about a file."""

    file: FileRef
    kind: MediaKind
    clock: Clock | None = None
    with_sound: bool = False
    """Whether the length of a video's own sound track is wanted."""


@dataclass(frozen=True)
class Facts:
    """What was found out about a file. Times are seconds on the file's own clock."""

    content: str
    """xxh3-128 of the file, in hex."""
    width: int = 0
    height: int = 0
    """Size as shown."""
    start_s: float = 0.0
    """Time stamp of a video's first picture."""
    frames: Mapping[str, int] = field(default_factory=dict)
    """Video frames by the clock's name."""
    sound: tuple[float, float] | None = None
    """First and last moment of the sound; None when there is no sound track, or nobody asked."""
    asked_sound: bool = False
    notes: tuple[str, ...] = ()
    """What had to be done to the picture: turned, flattened …"""


def look_up(inquiries: Sequence[Inquiry], folder: Path) -> dict[str, Facts | str]:
    """Facts by the file's key, or the reason why a file cannot be read, or why an absent one cannot be judged.

    Only files whose size or time differs from what `folder`'s index remembers are opened. Several processes share the
    work: who comes second waits, and finds it done.
    """
    found: dict[str, Facts | str] = {}
    index = CacheIndex.load(folder)
    open_ones = [one for one in inquiries if not _from_index(one, index, found)]
    if not open_ones:
        return found
    bar = progress(total=len(open_ones), desc="reading sources", unit="file")
    for start in range(0, len(open_ones), _CHUNK):
        chunk = open_ones[start:start + _CHUNK]
        with alone_in(folder, "sources"):
            index = CacheIndex.load(folder)
            missing = [one for one in chunk if not _from_index(one, index, found)]
            bar.update(len(chunk) - len(missing))
            if missing:
                _look_at(missing, index, found, bar)
    bar.close()
    return found


def _look_at(missing: Sequence[Inquiry], index: CacheIndex, found: dict[str, Facts | str], bar: Any) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        answers = pool.map(lambda one: _examine(one, _remembered(one, index)), missing)
        for one, answer in zip(missing, answers, strict=True):
            found[one.file.key] = answer
            bar.update(1)
    fresh = {one.file.key: _data(one, facts) for one in missing if isinstance(facts := found[one.file.key], Facts)}
    update_index(index.folder, lambda data: data.setdefault("sources", {}).update(fresh))


def _from_index(one: Inquiry, index: CacheIndex, found: dict[str, Facts | str]) -> bool:
    """Take the answer from the index where it still holds; an absent file is judged by the index alone."""
    facts = _remembered(one, index)
    if not one.file.is_present:
        found[one.file.key] = _lacking(one, facts) or facts or "absent, and not remembered by the cache"
        return True
    if facts is None or _lacking(one, facts):
        return False
    if [index.sources[one.file.key][name] for name in ("size", "mtime_ns")] != list(_state(one.file.path)):
        return False
    found[one.file.key] = facts
    return True


def _remembered(one: Inquiry, index: CacheIndex) -> Facts | None:
    data = index.sources.get(one.file.key)
    if data is None or data.get("kind") != one.kind:
        return None
    sound = tuple(data["sound"]) if data.get("sound") else None
    return Facts(data["content"], data["width"], data["height"], data["start_s"], data["frames"], sound,
                 data["asked_sound"], tuple(data["notes"]))


def _lacking(one: Inquiry, facts: Facts | None) -> str:
    """What the remembered facts do not tell, as the reason why an absent file cannot be judged."""
    if facts is None:
        return "absent, and not remembered by the cache"
    if one.kind == "video" and one.clock is not None and one.clock.name not in facts.frames:
        return f"absent, and the cache does not know its frames at {one.clock.name} fps"
    if one.with_sound and not facts.asked_sound:
        return "absent, and the cache does not know its sound"
    return ""


def _examine(one: Inquiry, old: Facts | None) -> Facts | str:
    try:
        content = content_hash(one.file.path)
        # Touched, not changed: what was found out holds, and only what is new is looked for.
        known = old if old is not None and old.content == content else Facts(content)
        return _LOOKERS[one.kind](one, known)
    except MediaError as error:
        return str(error)
    except OSError as error:
        return f"{one.file.path}: cannot be read ({error.strerror})."


def _look_at_image(one: Inquiry, known: Facts) -> Facts:
    from common.media.image import read_image

    if known.width:
        return known
    picture, notes = read_image(one.file.path)
    return replace(known, width=picture.shape[1], height=picture.shape[0], notes=tuple(notes))


def _look_at_video(one: Inquiry, known: Facts) -> Facts:
    from common.media.video import count_frames, probe_video

    assert one.clock is not None
    frames = dict(known.frames)
    if one.clock.name not in frames:
        frames[one.clock.name] = count_frames(one.file.path, one.clock.fps, one.clock.source_fps)
    if not known.width:
        info = probe_video(one.file.path)
        known = replace(known, width=info.width, height=info.height, start_s=float(info.start_s),
                        notes=tuple(getattr(info, "notes", ())))
    sound = known.sound
    if one.with_sound and not known.asked_sound:
        sound = _sound_extent(one.file.path) if probe_video(one.file.path).has_sound else None
    return replace(known, frames=frames, sound=sound, asked_sound=known.asked_sound or one.with_sound)


def _look_at_sound(one: Inquiry, known: Facts) -> Facts:
    return replace(known, sound=_sound_extent(one.file.path), asked_sound=True)


def _sound_extent(path: Path) -> tuple[float, float]:
    from common.media.sound import read_sound

    sound = read_sound(path)
    return float(sound.start_s), float(sound.start_s) + sound.samples.shape[-1] / sound.sample_rate


def _look_at_bytes(one: Inquiry, known: Facts) -> Facts:
    return known


_LOOKERS: dict[str, Callable[[Inquiry, Facts], Facts]] = {
    "image": _look_at_image, "video": _look_at_video, "sound": _look_at_sound, "bytes": _look_at_bytes}


def _data(one: Inquiry, facts: Facts) -> dict[str, Any]:
    size, mtime_ns = _state(one.file.path)
    return {**asdict(facts), "kind": one.kind, "size": size, "mtime_ns": mtime_ns}


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change; of a folder, over the files in it."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)
