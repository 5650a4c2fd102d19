"""A video that can be watched while it is made: fragmented MP4, later turned into an ordinary file."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
import os
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic import atomic_path
from common.errors import MediaError
from common.media.colour import frame_of
from common.media.container import quiet
from common.media.sound import Sound
from common.media.video_writer import (
    GENERATED_COMMENT,
    VIDEO_CODEC,
    VIDEO_OPTIONS,
    SoundFeed,
    as_write_error,
    audio_stream,
    check_size,
    fitted,
    muxer_options,
    set_picture_format,
    video_stream,
)
from common.timebase import as_fraction

_FRAGMENTS = "+frag_keyframe+delay_moov+default_base_moof"
_FRAGMENT_MICROSECONDS = "500000"


class GrowingVideo:
    """An MP4 that grows with each `append` and plays at any moment up to about half a second before its end.

    Codecs and sound are those of `write_video`. Each `append` is coded on its own, so that all of its frames are in the
    file (but for that half second) when it returns. A file at `path` is replaced. Use it with ``with``.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float | Fraction, sound: Sound | None = None,
                 lead_s: float = 0.0) -> None:
        self.path = Path(path)
        self._rate = as_fraction(fps)
        self._track = None if sound is None else fitted(sound, lead_s)
        self._container: Any = None
        self._video: Any = None
        self._sound: SoundFeed | None = None
        self._size = (0, 0)
        self.frames = 0
        """Frames that were appended."""

    def append(self, frames: Iterable[np.ndarray]) -> None:
        """Add uint8 RGB frames ``[H W 3]`` of one size. Raises MediaError for another one, OSError for a full disk."""
        av = quiet()
        encoder = None
        try:
            for picture in frames:
                self._check(picture)
                encoder = encoder or self._encoder()
                frame = frame_of(picture)
                frame.pts, frame.time_base = self.frames, 1 / self._rate
                self._mux(encoder.encode(frame))
                self.frames += 1
                assert self._sound is not None
                self._sound.until(self.frames / self._rate)
            if encoder is not None:
                self._mux(encoder.encode(None))
        except av.error.FFmpegError as error:
            raise as_write_error(self.path, error) from error

    def close(self) -> None:
        """Finish the file: what was appended plays to its last frame. The sound ends with the pictures."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> "GrowingVideo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, picture: np.ndarray) -> None:
        if self._container is None:
            check_size(self.path, picture)
            self._open(picture.shape[1], picture.shape[0])
        if picture.shape != (self._size[1], self._size[0], 3) or picture.dtype != np.uint8:
            raise MediaError(f"{self.path}: frame {self.frames} is {picture.dtype} {list(picture.shape)}, the first "
                             f"was uint8 {[self._size[1], self._size[0], 3]}.")

    def _open(self, width: int, height: int) -> None:
        av = quiet()
        options = muxer_options(self._track, _FRAGMENTS) | {"frag_duration": _FRAGMENT_MICROSECONDS,
                                                           "flush_packets": "1"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self.path), "w", format="mp4", options=options)
        self._container.metadata.update({"comment": GENERATED_COMMENT, "description": GENERATED_COMMENT})
        self._video = video_stream(self._container, width, height, self._rate)
        audio = None if self._track is None else audio_stream(self._container, self._track)
        self._sound = SoundFeed(self._container, audio, self._track)
        self._size = (width, height)

    def _encoder(self) -> Any:
        """An encoder of its own for every piece: closed at its end, nothing of it waits for the next one."""
        from av import CodecContext
        from av.codec.context import Flags

        context = CodecContext.create(VIDEO_CODEC, "w")
        set_picture_format(context, *self._size)
        context.time_base, context.framerate = 1 / self._rate, self._rate
        context.options = dict(VIDEO_OPTIONS)
        context.flags |= Flags.global_header
        return context

    def _mux(self, packets: Iterable[Any]) -> None:
        for packet in packets:
            packet.stream = self._video
            self._container.mux(packet)


def finish_video(growing: str | os.PathLike[str], path: str | os.PathLike[str], *, sound: Sound | None = None,
                 lead_s: float = 0.0, tags: Mapping[str, str] | None = None) -> None:
    """Turn a closed `GrowingVideo` file into an ordinary MP4 at `path`, whole or not at all.

    The pictures are copied as they are coded; the sound is written anew and whole, as by `write_video`.
    """
    av = quiet()
    track = None if sound is None else fitted(sound, lead_s)
    with atomic_path(path) as temporary:
        try:
            with (av.open(str(growing)) as source,
                  av.open(str(temporary), "w", format="mp4", options=muxer_options(track)) as target):
                said = {"comment": GENERATED_COMMENT, "description": GENERATED_COMMENT}
                target.metadata.update(said | dict(tags or {}))
                pictures = source.streams.video[0]
                video = target.add_stream_from_template(pictures)
                audio = None if track is None else audio_stream(target, track)
                feed = SoundFeed(target, audio, track)
                for packet in source.demux(pictures):
                    if packet.dts is None:
                        continue
                    time_s = packet.dts * packet.time_base
                    packet.stream = video
                    target.mux(packet)
                    feed.until(time_s)
                feed.finish()
        except av.error.FFmpegError as error:
            raise as_write_error(path, error) from error
