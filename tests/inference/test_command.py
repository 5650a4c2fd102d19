"""generate_video.py as a user runs it: prompt files, failures, exit codes, what is left behind."""

from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from common.config import to_toml
from common.errors import ConfigError
from inference.command import run_request
from inference.outputs import check_save_path, choose_targets


def names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == suffix)


def test_a_prompt_file_makes_a_video_a_line_on_models_loaded_once(ask, tmp_path, caplog):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog --d 1 --f 5\na cat --d 2 --f 1 --w 32\n", encoding="utf-8")
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        assert run_request(ask(prompt=None, from_file=prompts, save_path=out)) == 0
    assert len(names(out, ".mp4")) == 2 and len(names(out, ".json")) == 2
    assert [name.split("_")[1] for name in names(out, ".mp4")] in (["1.mp4", "2.mp4"], ["2.mp4", "1.mp4"])
    assert sum("loaded dit" in message for message in caplog.messages) == 1
    assert sum("loaded vae" in message for message in caplog.messages) == 1


def test_a_failing_line_keeps_the_others_and_ends_with_an_error(ask, tmp_path, caplog):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog --f 6\na cat --f 1\na bird --i missing.png\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="2 of 3 prompts"):
        run_request(ask(prompt=None, from_file=prompts, save_path=tmp_path / "out"))
    assert len(names(tmp_path / "out", ".mp4")) == 1
    assert any("line 1" in message and "5 or 9" in message for message in caplog.messages)
    assert any("line 3" in message and "missing.png" in message for message in caplog.messages)


def test_unusable_models_end_a_prompt_file_at_once(ask, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\na cat\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="nowhere.pth: no such file"):
        run_request(ask(prompt=None, from_file=prompts, save_path=tmp_path / "out", vae=Path("nowhere.pth")))


def test_several_processes_that_would_write_the_same_video_are_refused(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"in one process, and 2 were started.*CUDA_VISIBLE_DEVICES"):
        run_request(ask(save_path=tmp_path / "a.mp4"))
    assert not list(tmp_path.glob("a*"))


def test_many_videos_do_not_go_into_one_file(ask, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="2 videos are to be written"):
        run_request(ask(prompt=None, from_file=prompts, save_path=tmp_path / "x.mp4"))


def test_save_path_is_a_video_file_or_a_folder(ask, tmp_path):
    from datetime import datetime

    now = datetime(2026, 1, 2, 3, 4, 5)
    file = choose_targets(ask(save_path=tmp_path / "x.mp4", output_type="both"), 7, now)
    assert (file.video, file.latent) == (tmp_path / "x.mp4", tmp_path / "x_latent.safetensors")
    folder = choose_targets(ask(save_path=tmp_path / "v1.0"), 7, now)
    assert folder.video == tmp_path / "v1.0" / "20260102-030405_7.mp4"
    folder.video.parent.mkdir()
    folder.video.touch()
    assert choose_targets(ask(save_path=tmp_path / "v1.0"), 7, now).video.name == "20260102-030405_7_2.mp4"
    assert choose_targets(ask(save_path=tmp_path, output_type="images"), 7, now).first == tmp_path / "20260102-030405_7"


def test_places_that_cannot_take_the_result_are_refused_early(ask, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for place, message in ((None, "required"), (tmp_path / "file", "is a file"),
                           (tmp_path / "folder.mp4", "is a folder"), (tmp_path / "file" / "x.mp4", "not a folder")):
        with pytest.raises(ConfigError, match=message):
            check_save_path(ask(save_path=place))
    with pytest.raises(ConfigError, match="many pictures"):
        check_save_path(ask(save_path=tmp_path / "x.mp4", output_type="images"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that takes no files, even from root")
def test_a_folder_that_takes_no_files_is_refused_early(ask):
    with pytest.raises(ConfigError, match="/proc takes no files"):
        check_save_path(ask(save_path=Path("/proc/x.mp4")))


def run_script(root: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "generate_video.py", *words], cwd=root, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_shows_its_settings_and_writes_the_video(ask, root, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(to_toml(ask(video_length=1)), encoding="utf-8")
    done = run_script(root, "--config_file", str(config), "--save_path", str(tmp_path / "a.mp4"))
    assert done.returncode == 0, done.stderr
    assert 'prompt = "a person speaks"' in done.stderr and "seed = 3" in done.stderr and "a.mp4" in done.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 500
    again = run_script(root, "--config_file", str(tmp_path / "a.json"), "--save_path", str(tmp_path / "b.mp4"))
    assert again.returncode == 0, again.stderr


def test_the_script_ends_with_one_message_and_exit_code_1(ask, root, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(to_toml(ask(video_size=(33, 48))), encoding="utf-8")
    done = run_script(root, "--config_file", str(config), "--save_path", str(tmp_path / "a.mp4"))
    assert done.returncode == 1
    assert "error: " in done.stderr and "multiples of 16" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_half_written(ask, root, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("first --f 1 --s 1\n" + "second --f 81 --s 500 --w 256 --h 256\n", encoding="utf-8")
    config = tmp_path / "run.toml"
    config.write_text(to_toml(ask(prompt=None)), encoding="utf-8")
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "generate_video.py", "--config_file", str(config), "--from_file",
                                str(prompts), "--save_path", str(out)], cwd=root, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic()
    try:
        while not (out.is_dir() and names(out, ".json")) and time.monotonic() - waited < 60:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in told
    assert len(names(out, ".mp4")) == 1
    assert all(not path.name.startswith(".") for path in out.iterdir())


@pytest.mark.slow
def test_a_full_disk_is_told_and_leaves_nothing_half_written(ask, root, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(to_toml(ask(video_length=5, output_type="both")), encoding="utf-8")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    code = (f"{limit}; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import sys, runpy; "
            "sys.argv = ['generate_video.py', *sys.argv[1:]]; runpy.run_path('generate_video.py', run_name='__main__')")
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, "--config_file", str(config), "--save_path", str(out / "a.mp4")],
                          cwd=root, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr
    assert list(out.iterdir()) == []
