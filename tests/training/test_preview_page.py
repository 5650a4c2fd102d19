"""The page of previews, from records as runs leave them; and the copies in a Modal volume."""

from html.parser import HTMLParser
import json
from pathlib import Path
from typing import Any

import pytest

from training.looking.modal_copy import ModalCopy
from training.looking.preview_page import page, read_previews, write_page


def leave(folder: Path, name: str, step: int, number: int, *, prompt: str = "a head speaks", **training: Any) -> str:
    """The files of a preview that the page looks at."""
    stem = f"{name}_step{step:08d}_{number:02d}"
    for ending in (".mp4", "_fmid.jpg", "_ref.jpg", ".wav"):
        (folder / f"{stem}{ending}").write_bytes(b"x")
    told = {"name": name, "step": step, "epoch": 1, "number": number, "from": "p.txt line 1", **training}
    record = {"training": told,
              "settings": {"prompt": prompt, "infer_steps": 8, "seed": 3},
              "result": {"width": 48, "height": 32, "frames": 5, "fps": 25.0}}
    (folder / f"{stem}.json").write_text(json.dumps(record), encoding="utf-8")
    return stem


class Reader(HTMLParser):
    """Tags that are open at the end, the rows' cells, and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "poster")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data


def test_rows_are_prompts_and_columns_are_steps_in_their_order(tmp_path: Path) -> None:
    leave(tmp_path, "t", 100, 0, loss=0.25, average_loss=0.5, held_out_loss=0.75)
    leave(tmp_path, "t", 20, 0)
    leave(tmp_path, "t", 100, 1, prompt="another")
    read = Reader(write_page(tmp_path).read_text(encoding="utf-8"))
    assert read.open == []
    head, first, second = read.rows
    assert head == ["prompt", "step 20epoch 1",
                    "step 100epoch 1, loss 0.2500, average 0.5000, held out 0.7500"]
    assert first[0].startswith("00 a head speaks48x32, 5 frames at 25 fps, 8 steps, seed 3")
    assert second[0].startswith("01 another") and second[1] == "–"
    assert {(tmp_path / address).exists() for address in read.addresses} == {True}
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_no_text_of_a_user_becomes_markup_or_an_address(tmp_path: Path) -> None:
    name, prompt = "50% <a>'\"&#1?", "</th><script>alert(1)</script> & \"more\""
    leave(tmp_path, name, 1, 0, prompt=prompt, **{"from": "<img src=x onerror=y>.txt"})
    text = page(read_previews(tmp_path), {path.name for path in tmp_path.iterdir()})
    read = Reader(text)
    assert "<script" not in text and "<img src=x" not in text and "<a>" not in text
    assert prompt in read.rows[1][0] and read.open == []
    assert all(set(address) <= set("abcdefghijklmnopqrstuvwxyz0123456789%ABCDEF_.") for address in read.addresses)


def test_runs_of_two_names_stand_apart_and_a_broken_record_is_left_out(tmp_path: Path,
                                                                       caplog: pytest.LogCaptureFixture) -> None:
    leave(tmp_path, "a", 1, 0)
    leave(tmp_path, "b", 2, 0)
    (tmp_path / "c_step00000001_00.json").write_text("{", encoding="utf-8")
    read = Reader(write_page(tmp_path).read_text(encoding="utf-8"))
    assert [row[1] for row in read.rows if row[0] == "prompt"] == ["step 1epoch 1", "step 2epoch 1"]
    assert "c_step00000001_00.json: no record of a preview" in caplog.text


def test_files_are_copied_into_a_modal_volume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert ModalCopy.from_environment({}) is None
    copy = ModalCopy.from_environment({"OMNIAVATAR_MODAL_VOLUME": "mine"}, mount=tmp_path / "vol")
    assert copy is not None
    video = tmp_path / "t_step00000050_00.mp4"
    video.write_bytes(b"video")
    for _ in range(2):
        copy.copy([video])
    assert len(caplog.messages) == 1 and "previews are not copied" in caplog.text
    (tmp_path / "vol").mkdir()
    with caplog.at_level("INFO"):
        copy.copy([video])
    assert (tmp_path / "vol" / "outputs" / "eval" / video.name).read_bytes() == b"video"
    assert caplog.messages[1:] == [
        "modal volume get mine outputs/eval/t_step00000050_00.mp4 ./t_step00000050_00.mp4"]
