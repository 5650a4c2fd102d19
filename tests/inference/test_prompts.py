"""Prompt files: the accepted forms, and the traps of the parser that users know."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from inference.prompts import parse_line, read_prompts
from inference.request import GenerationRequest


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_line_option_reaches_its_setting(tmp_path):
    line = ("a man talks --w 480 --h 320 --f 33 --d 7 --s 12 --l 4.5 --fs -1 --i my face.png --ei end.png "
            "--a 'my sound.wav' --n blurred, dark")
    assert parse_line(line) == {
        "prompt": "a man talks", "width": "480", "height": "320", "video_length": "33", "seed": "7",
        "infer_steps": "12", "guidance_scale": "4.5", "flow_shift": "-1", "image_path": "my face.png",
        "end_image_path": "end.png", "audio": "my sound.wav", "negative_prompt": "blurred, dark"}
    path = write(tmp_path, "prompts.txt", line.replace("--fs -1", "--fs 3") + "\n")
    request = read_prompts(path, GenerationRequest())[0].request
    assert request.video_size == (320, 480) and request.video_length == 33 and request.flow_shift == 3
    assert request.image_path == Path("my face.png") and request.audio == Path("my sound.wav")


def test_words_of_the_prompt_are_never_taken_for_options():
    """musubi-tuner reads "I walk on the beach" as image_path="walk on the beach", and " --" cuts the prompt."""
    assert parse_line("I walk on the beach") == {"prompt": "I walk on the beach"}
    assert parse_line("d 5 steps up -- then a pause --d 3") == {"prompt": "d 5 steps up -- then a pause", "seed": "3"}
    assert parse_line("well-known --s=4") == {"prompt": "well-known", "infer_steps": "4"}


def test_a_wrong_value_is_told_and_not_ignored(tmp_path):
    """musubi-tuner ignores "--fs -1"."""
    entry = read_prompts(write(tmp_path, "p.txt", "x --fs -1"), GenerationRequest())[0]
    assert entry.request is None and "flow_shift" in entry.problem


@pytest.mark.parametrize(("line", "message"), [
    ("x --seeed 3", "unknown option --seeed.*nearest: '--seed'"),
    ("x --d", "--d has no value"),
    ("x --l 3 --g 4", "given twice"),
    ("x --of target_index=1", "FramePack"),
    ("x@@i.png@@a.wav@@v.mp4", "dataset manifest"),
])
def test_wrong_lines_say_what_is_wrong(line, message):
    with pytest.raises(ConfigError, match=message):
        parse_line(line)


def test_comments_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeff# heading\n\n  # more\nсмелый кот --d 1\r\n".encode())
    entries = read_prompts(path, GenerationRequest())
    assert [entry.where for entry in entries] == ["p.txt line 4"]
    assert entries[0].request.prompt == "смелый кот"


def test_omniavatar_lines_give_prompt_picture_and_sound(tmp_path):
    path = write(tmp_path, "infer_samples.txt", "A man speaks@@face.png@@speech.wav\nOnly a face@@face.png@@ --d 3\n")
    first, second = (entry.request for entry in read_prompts(path, GenerationRequest()))
    assert (first.prompt, first.image_path, first.audio) == ("A man speaks", Path("face.png"), Path("speech.wav"))
    assert (second.image_path, second.audio, second.seed) == (Path("face.png"), None, 3)


def test_a_line_keeps_the_settings_of_the_command_line(tmp_path):
    base = GenerationRequest(video_size=(320, 480), infer_steps=9, seed=1, from_file=Path("p.txt"), prompt="spare")
    path = write(tmp_path, "p.txt", "x --w 512\n--d 4\n")
    first, second = (entry.request for entry in read_prompts(path, base))
    assert first.video_size == (320, 512) and first.infer_steps == 9 and first.seed == 1 and first.from_file is None
    assert (second.prompt, second.seed) == ("spare", 4)


def test_a_bad_line_does_not_stop_the_others(tmp_path):
    entries = read_prompts(write(tmp_path, "p.txt", "x --f 80\ny --f 81\n--d 2\n"), GenerationRequest())
    assert [entry.request is not None for entry in entries] == [False, True, False]
    assert "Use 77 or 81" in entries[0].problem and entries[2].problem == "no prompt."


def test_toml_and_json_forms_take_musubi_names_and_ours(tmp_path):
    toml = write(tmp_path, "p.toml", '[prompt]\nwidth = 320\nsample_steps = 5\n[[prompt.subset]]\nprompt = "a -- b"\n'
                                     'frame_count = 17\n[[prompt.subset]]\nprompt = "c"\nframe_cont = 5\n')
    first, second = read_prompts(toml, GenerationRequest())
    assert first.request.prompt == "a -- b" and first.request.video_size == (256, 320)
    assert first.request.infer_steps == 5 and first.request.video_length == 17
    assert "frame_cont" in second.problem and "frame_count" in second.problem
    rows = [{"prompt": "a", "audio": "s.wav", "cfg_scale": 3, "seed": None}, "b --d 2"]
    first, second = (entry.request for entry in read_prompts(write(tmp_path, "p.json", json.dumps(rows)),
                                                             GenerationRequest()))
    assert first.guidance_scale == 3 and first.audio == Path("s.wav") and second.seed == 2


def test_paths_are_found_beside_the_prompt_file_too(tmp_path):
    (tmp_path / "face.png").touch()
    request = read_prompts(write(tmp_path, "p.txt", "x --i face.png --a nowhere.wav"), GenerationRequest())[0].request
    assert request.image_path == tmp_path / "face.png"
    assert request.audio == Path("nowhere.wav")


@pytest.mark.parametrize(("name", "text", "message"), [
    ("p.txt", "# nothing\n", "holds no prompt"), ("p.json", "{", "not valid JSON"), ("p.json", "{}", "list of objects"),
    ("p.toml", "a = 1", r"\[prompt\]"),
])
def test_unusable_files_are_refused(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        read_prompts(write(tmp_path, name, text), GenerationRequest())
    with pytest.raises(ConfigError, match="no such file"):
        read_prompts(tmp_path / "absent.txt", GenerationRequest())
