"""Cleaning prompts, their ids, and where the tokenizer is looked for."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
import torch

from common.errors import WeightsError
from wan.encoders.text_cleaning import clean_prompt
from wan.encoders.tokenizer import Tokenizer, find_tokenizer
from wan.weights.source import open_weights


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(("text", "cleaned"), [
    ("  two   spaces\n\tand a tab ", "two spaces and a tab"),
    ("rock &amp;amp; roll &lt;3", "rock & roll <3"),
    ("cafÃ©", "café"),
    ("a “quoted” word", 'a "quoted" word'),
    ("一个女人在说话", "一个女人在说话"),
    ("", ""),
])
def test_prompts_are_cleaned_as_wan_does(text: str, cleaned: str) -> None:
    """Source: ftfy.fix_text, html.unescape twice, white space collapsed (Wan 2.1 tokenizers.py)."""
    assert clean_prompt(text) == cleaned


def test_ids_are_sentencepiece_ids_and_the_end_token(spiece: bytes) -> None:
    tokenizer = Tokenizer(spiece, "test")
    pieces = SentencePieceProcessor(model_proto=spiece)
    assert tokenizer("a man &amp; a cat") == [*pieces.encode("a man & a cat"), 1]
    assert tokenizer("") == tokenizer("  \n ") == [1]
    assert tokenizer.size == 48


def test_a_long_prompt_keeps_512_ids_and_ends_on_the_end_token(spiece: bytes) -> None:
    tokenizer = Tokenizer(spiece, "test")
    ids = tokenizer("the rain " * 600)
    assert len(ids) == 512 and ids[-1] == 1
    assert ids[:511] == SentencePieceProcessor(model_proto=spiece).encode(("the rain " * 600).strip())[:511]


def test_places_are_tried_in_order(tmp_path: Path, no_hub: Path, spiece: bytes) -> None:
    """Last to first: each place that is added wins over those before it."""
    weights = tmp_path / "model" / "t5.safetensors"
    weights.parent.mkdir()
    save_file({"x": torch.zeros(1)}, weights)

    def place(path: Path) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(spiece)
        return str(path)

    snapshot = no_hub / "models--Wan-AI--Wan2.1-T2V-1.3B" / "snapshots" / "abc"
    hub = place(snapshot / "google" / "umt5-xxl" / "spiece.model")
    assert find_tokenizer(weights).origin == hub
    official = place(weights.parent / "google" / "umt5-xxl" / "spiece.model")
    assert find_tokenizer(weights).origin == find_tokenizer(weights.parent).origin == official
    beside = place(weights.parent / "spiece.model")
    assert find_tokenizer(weights).origin == beside
    save_file({"spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}, weights)
    with open_weights(weights) as source:
        assert "(spiece_model)" in find_tokenizer(weights, source=source).origin
        given = place(tmp_path / "mine.model")
        assert find_tokenizer(weights, given, source=source).origin == given


def test_the_google_repository_in_the_hub_cache_counts(tmp_path: Path, no_hub: Path, spiece: bytes) -> None:
    path = no_hub / "models--google--umt5-xxl" / "snapshots" / "abc" / "spiece.model"
    path.parent.mkdir(parents=True)
    path.write_bytes(spiece)
    assert find_tokenizer(tmp_path / "t5.pth").origin == str(path)


def test_a_given_tokenizer_that_is_not_there_is_an_error_of_its_own(tmp_path: Path, no_hub: Path) -> None:
    with pytest.raises(WeightsError, match=r"--tokenizer .*absent.*no such file"):
        find_tokenizer(tmp_path / "t5.pth", tmp_path / "absent")
    with pytest.raises(WeightsError, match="the folder has neither"):
        find_tokenizer(tmp_path / "t5.pth", tmp_path)


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="not a sentencepiece model"):
        find_tokenizer(tmp_path / "t5.pth")
