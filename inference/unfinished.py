"""What is kept of a long video until it is whole: the chunks' latents, the video so far, what they were made with."""

from collections.abc import Mapping
import json
from pathlib import Path
import shutil
from typing import Any

from jaxtyping import Float
from torch import Tensor

from common.atomic import write_text
from common.errors import ConfigError, UserError
from inference.outputs import is_file_path
from inference.request import GenerationRequest
from inference.segments import Segment

SUFFIX = ".parts"
STATE = "state.json"
SO_FAR = "so-far.mp4"
TENSOR = "latents"


def folder_of(target: Path) -> Path:
    """The folder beside a video in which its parts are kept."""
    return target.with_name(target.name + SUFFIX)


class Unfinished:
    """The folder ``NAME.mp4.parts`` beside a long video that is being made."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.so_far = folder / SO_FAR
        """The video that grows; it can be watched."""
        self._identity = identity

    @classmethod
    def begin(cls, target: Path, identity: Mapping[str, Any]) -> "Unfinished":
        """The folder for `target`, with the chunks that an earlier run of the same `identity` left there."""
        unfinished = cls(folder_of(target), identity)
        if _read_state(unfinished.folder) is None:
            unfinished.remove()  # chunks that nothing is known of
        unfinished.folder.mkdir(parents=True, exist_ok=True)
        write_text(unfinished.folder / STATE, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
        return unfinished

    def latents(self, segment: Segment) -> Float[Tensor, "16 T h w"] | None:
        """The latents of a chunk that was finished, or None. A file that is damaged counts as not finished."""
        from common.tensorfile import load_tensors

        path = self._path(segment)
        if not path.is_file():
            return None
        try:
            return load_tensors(path)[0][TENSOR].clone()  # out of the mapped file, whose alignment changes roundings
        except (UserError, KeyError):
            return None

    def keep(self, segment: Segment, latents: Float[Tensor, "16 T h w"]) -> None:
        """Keep the latents of a chunk."""
        from common.tensorfile import save_tensors

        save_tensors(self._path(segment), {TENSOR: latents}, {"chunk": str(segment.index)})

    def count(self) -> int:
        """Chunks that are kept."""
        return len(list(self.folder.glob("chunk-*.safetensors")))

    def remove(self) -> None:
        """Let go of everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, segment: Segment) -> Path:
        return self.folder / f"chunk-{segment.index:04d}.safetensors"


def with_kept_seed(request: GenerationRequest) -> GenerationRequest:
    """With `--resume` and no `--seed`: the request with the seed of the run that it goes on with."""
    if not request.resume or request.seed is not None or request.save_path is None:
        return request
    state = _read_state(folder_of(request.save_path))
    return request if state is None else request.model_copy(update={"seed": state["settings"]["seed"]})


def check_unfinished(request: GenerationRequest, identity: Mapping[str, Any]) -> None:
    """Refuse to write over the chunks of an earlier run, or to go on with chunks of other settings. ConfigError."""
    path = request.save_path
    if path is None or not is_file_path(path):
        return
    folder = folder_of(path)
    state = _read_state(folder)
    if state is None:
        return
    if not request.resume:
        raise ConfigError(f"{folder}: holds the chunks of a run that was not finished. Go on with them by --resume, or "
                          "delete the folder to start anew.")
    differing = _differences(state, json.loads(json.dumps(identity)))
    if differing:
        raise ConfigError(f"--resume: the chunks in {folder} were made with other settings: "
                          f"{'; '.join(differing[:4])}. Give the same ones, or delete the folder to start anew.")


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / STATE}: cannot be read ({error}). Delete the folder to start anew.") from error
    if not isinstance(state, dict) or "seed" not in state.get("settings", {}):
        raise ConfigError(f"{folder / STATE}: is not what a run leaves there. Delete the folder to start anew.")
    return state


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> list[str]:
    """Sentences for what differs between two nested settings."""
    found: list[str] = []
    for key in dict.fromkeys([*then, *now]):
        a, b = then.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, key)
        elif a != b:
            label = key if name in ("", "settings") else f"{name} {key}"
            found.append(f"{label} was {_short(a)}, is {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
