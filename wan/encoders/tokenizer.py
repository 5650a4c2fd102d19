"""The umT5 tokenizer: sentencepiece itself, so that no version of transformers changes the ids."""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import WeightsError
from wan.encoders.text_cleaning import clean_prompt

if TYPE_CHECKING:
    from wan.weights.source import WeightsSource

EOS = 1
MAX_TOKENS = 512
FILE_NAME = "spiece.model"
OFFICIAL_FOLDER = Path("google", "umt5-xxl")
EMBEDDED_KEY = "spiece_model"
"""Name of the uint8 tensor in which ComfyUI's umT5 files carry the tokenizer."""


class Tokenizer:
    """Prompt to umT5 ids: cleaned, at most 512 ids, always ended by the end-of-sequence id 1, without padding."""

    def __init__(self, model: bytes, origin: str) -> None:
        from sentencepiece import SentencePieceProcessor

        self.origin = origin
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise WeightsError(f"{origin}: not a sentencepiece model ({len(model)} bytes). "
                               f"The tokenizer is {OFFICIAL_FOLDER / FILE_NAME} of any Wan 2.1 download.") from error
        self._model = model

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._pieces.get_piece_size()

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the model's content."""
        import xxhash

        return xxhash.xxh3_64_hexdigest(self._model)

    def __call__(self, prompt: str) -> list[int]:
        """Ids of `prompt`; an empty one is ``[1]``."""
        return [*self._pieces.encode(clean_prompt(prompt))[:MAX_TOKENS - 1], EOS]


def find_tokenizer(weights: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None, *,
                   source: "WeightsSource | None" = None) -> Tokenizer:
    """The tokenizer for the umT5 `weights`; never downloads.

    Looked for in this order: the file or folder `tokenizer`; inside `source` (a ComfyUI file); beside the weights or in
    `google/umt5-xxl` there; the hub's cache on this machine. WeightsError names all four places when none has it.
    """
    if tokenizer is not None:
        return _from_path(Path(tokenizer))
    if source is not None and EMBEDDED_KEY in source.keys():  # noqa: SIM118
        return Tokenizer(source.tensor(EMBEDDED_KEY).numpy().tobytes(), f"{weights} ({EMBEDDED_KEY})")
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    for path in (*_inside(folder), *_in_hub_cache()):
        if path.is_file():
            return Tokenizer(path.read_bytes(), str(path))
    raise WeightsError(
        f"no umT5 tokenizer found. Looked at: --tokenizer (not given); a '{EMBEDDED_KEY}' tensor inside {weights} "
        f"(ComfyUI files have one); {FILE_NAME} in {folder} and in {folder / OFFICIAL_FOLDER}; the hub cache "
        f"{hub_cache()}. Give --tokenizer the file {OFFICIAL_FOLDER / FILE_NAME} of any Wan 2.1 download.")


def hub_cache() -> Path:
    """Where downloads of the Hugging Face hub lie on this machine (HF_HUB_CACHE, HF_HOME or the default)."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _inside(folder: Path) -> Sequence[Path]:
    return folder / FILE_NAME, folder / OFFICIAL_FOLDER / FILE_NAME


def _in_hub_cache() -> Sequence[Path]:
    """umT5 tokenizers in the cache: every Wan repository ships one in the official folder."""
    cache = hub_cache()
    found = [*cache.glob(f"models--Wan-AI--*/snapshots/*/{OFFICIAL_FOLDER.as_posix()}/{FILE_NAME}"),
             *cache.glob(f"models--google--umt5-*/snapshots/*/{FILE_NAME}")]
    return sorted(found)


def _from_path(path: Path) -> Tokenizer:
    candidates = _inside(path) if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return Tokenizer(candidate.read_bytes(), str(candidate))
    raise WeightsError(f"--tokenizer {path}: no such file"
                       + (f"; the folder has neither {' nor '.join(map(str, candidates))}." if path.is_dir() else "."))
