"""How a long sound is cut into chunks: which frames each chunk makes, which it is given, and which sound it hears."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.timebase import ceil_frame_count, floor_frame_count, is_valid_frame_count, latent_frame_count

OMNIAVATAR_SILENCE_S = 0.3
"""Silence that OmniAvatar's script puts in front of every sound."""
SHORTEST_SHARE = 2 / 3
"""A chunk that ends in a pause keeps at least this share of the new frames that fit into it."""


@dataclass(frozen=True)
class SoundTiming:
    """Where the sound stands against the frames.

    Row k of the sound's features belongs to frame k + `shift`. OmniAvatar shifts by one, because its frame 0 is the
    reference picture and the sound begins behind it; `lead_s` is the silence in front that the model hears.
    """

    lead_s: float = 0.0
    shift: int = 0

    def mux_lead_s(self, fps: float) -> float:
        """Seconds of silence in front of the sound in the written video."""
        return self.lead_s + self.shift / fps


@dataclass(frozen=True)
class Segment:
    """One chunk: `frames` = 4n+1 video frames from `start` on, of which the first `known` are given."""

    index: int
    start: int
    frames: int
    known: int
    """Frames that it is given: the still picture in the first chunk (0 without one), later the overlap."""
    new: range
    """Frames of the whole video that are taken from this chunk."""

    @property
    def end(self) -> int:
        """The frame of the whole video that follows the chunk."""
        return self.start + self.frames

    @property
    def known_latents(self) -> int:
        """Latent frames that are given."""
        return (3 + self.known) // 4

    @property
    def latents(self) -> int:
        """Latent frames of the chunk."""
        return latent_frame_count(self.frames)

    @property
    def new_local(self) -> slice:
        """The frames of `new`, counted from the chunk's first."""
        return slice(self.new.start - self.start, self.new.stop - self.start)

    def rows(self, timing: SoundTiming) -> range:
        """Rows of the whole sound's features that the chunk hears; a row below 0 is none (the still picture)."""
        return range(self.start - timing.shift, self.end - timing.shift)


def cut_into_segments(total: int, longest: int, overlap: int, *, first_known: int = 1, whole: bool = False,
                      loudness: Sequence[float] | None = None) -> tuple[Segment, ...]:
    """Chunks of at most `longest` = 4n+1 frames that make `total` frames, each new frame once.

    Chunk t > 0 begins with the last `overlap` = 4n+1 frames before it: without pauses it starts at t·(longest -
    overlap). `whole` makes every chunk `longest` frames long, as OmniAvatar does; otherwise the last one, or the only
    one, is no longer than it needs to be. `loudness` of every frame lets a chunk end earlier, in the quietest moment of
    its last third. `first_known`: frames that the first chunk is given.
    """
    assert is_valid_frame_count(longest) and is_valid_frame_count(overlap) and total >= 1, (longest, overlap, total)
    segments: list[Segment] = []
    start = begin = 0
    while not segments or begin < total:
        known = overlap if segments else first_known
        left = total - start
        if left <= longest:
            frames = longest if whole else ceil_frame_count(left)
        else:
            assert longest > overlap, (longest, overlap)
            frames = longest if loudness is None else _until_pause(start, longest, known, loudness)
        end = min(start + frames, total)
        segments.append(Segment(len(segments), start, frames, known, range(begin, end)))
        begin, start = end, start + frames - overlap
    return tuple(segments)


def _until_pause(start: int, longest: int, known: int, loudness: Sequence[float]) -> int:
    """Length of a chunk whose last frames are the quietest; the longest of equals."""
    shortest = max(floor_frame_count(known + int((longest - known) * SHORTEST_SHARE)), known + 4)
    lengths = range(longest, shortest - 1, -4)
    return min(lengths, key=lambda frames: _loudness_around(loudness, start + frames))


def _loudness_around(loudness: Sequence[float], seam: int) -> float:
    """Mean loudness of the two frames before a seam and the two behind it; silence where the sound is over."""
    around = loudness[max(seam - 2, 0):seam + 2]
    return sum(around) / max(len(around), 1)


def overlap_problem(overlap: int) -> str:
    """Sentence for an overlap that is not 4n+1; empty when it is."""
    if is_valid_frame_count(overlap):
        return ""
    if overlap < 1:
        return f"--overlap_frame {overlap}: a chunk takes over at least 1 frame. Use 4n+1 frames, such as 13."
    below = floor_frame_count(overlap)
    return (f"--overlap_frame {overlap}: the frames that a chunk takes over become latents, so they must be 4n+1. "
            f"Use {below} or {below + 4}.")


def chunk_problem(total: int, longest: int, overlap: int, fps: float) -> str:
    """Sentence for chunks that never get on; empty where one chunk is enough or each brings new frames."""
    if total <= longest or longest > overlap:
        return ""
    return (f"{total / fps:.2f} s need several chunks, and a chunk of {longest} frames brings nothing new when it "
            f"takes over {overlap} (--overlap_frame). Use a smaller --overlap_frame or --video_size, or raise "
            "--max_tokens or --chunk_frames.")
