"""Opening media files through PyAV: quiet, and with every failure told as a MediaError that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
from typing import Any

from common.errors import MediaError, UserError


def quiet() -> Any:
    """The PyAV module with FFmpeg's own messages switched off (they go to stderr and repeat what the errors say)."""
    import av

    # PyAV's own log callback takes the interpreter's lock for every error message, whatever its level: a decoder thread
    # that has one while the main thread waits for it would wait for ever. FFmpeg's callback needs no lock.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)
    return av


def reason(error: Exception) -> str:
    """First line of an error in the user's words, without the errno and the path that FFmpeg repeats."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def check_file(path: str | os.PathLike[str]) -> None:
    """Raise MediaError where `path` is no file or is empty."""
    if not os.path.isfile(path):
        raise MediaError(f"{path}: there is no such file. Check the path.")
    if os.path.getsize(path) == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes). Copy it again or take it out.")


@contextmanager
def open_media(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An open PyAV input container; whatever fails inside the block becomes a MediaError naming the file.

    Damaged files make PyAV raise more than its own errors (UnicodeDecodeError, for one), hence the wide net.
    """
    check_file(path)
    av = quiet()
    try:
        with av.open(str(Path(path)), **_metadata_option(av)) as container:
            yield container
    except UserError:
        raise
    except Exception as error:
        raise MediaError(f"{path}: damaged or not a media file ({reason(error)}). "
                         "Copy, download or re-encode it, or take it out.") from error


def _metadata_option(av: Any) -> dict[str, str]:
    """Titles in odd encodings are no reason to refuse a file; PyAV 19 forgives them and took the option away."""
    return {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def picture_stream(container: Any) -> Any | None:
    """The first stream of moving pictures, or None; a cover picture inside a sound file does not count."""
    for stream in container.streams.video:
        if not _is_cover(stream):
            return stream
    return None


def need_pictures(path: str | os.PathLike[str], container: Any) -> Any:
    """The stream of moving pictures; MediaError where the file has none."""
    stream = picture_stream(container)
    if stream is None:
        raise MediaError(f"{path}: the file holds no moving pictures. Use a video file, or give it as sound.")
    return stream


def sound_stream(container: Any) -> Any | None:
    """The first sound stream, or None."""
    return next(iter(container.streams.audio), None)


def _is_cover(stream: Any) -> bool:
    flag = getattr(type(stream.disposition), "attached_pic", None)
    return bool(flag is not None and stream.disposition & flag)
