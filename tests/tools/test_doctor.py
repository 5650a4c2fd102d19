"""The doctor: it sees what is wrong on a machine that was made ill, says what to do, and no check stops another."""

from collections.abc import Callable, Iterable
import json
from pathlib import Path
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from common.media import video_writer
import tools.doctor
from tools.health.finding import Finding, Patient, examine
from tools.health.folders import check_folders
from tools.health.gpu import check_devices
from tools.health.kernels import check_attention, check_bitsandbytes
from tools.health.launching import FP16_REASON, check_accelerate_config
from tools.health.packages import check_cv2, check_trackers, check_versions, requirements
from tools.health.system import check_clock, check_encoding, check_processors, check_python
from tools.health.table import CHECKS
from tools.health.video import check_video
from training.config import FP16_REFUSED
from wan.modules.attention import BACKENDS

HERE = Patient()


def only(found: Iterable[Finding], status: str) -> list[Finding]:
    return [one for one in found if one.status == status]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make pip's records say that a package of this version is installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    def record(name: str, version: str) -> None:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return record


def test_a_bare_interpreter_gets_an_answer_to_everything_and_no_traceback(root: Path, tmp_path: Path) -> None:
    """Without site-packages nothing but Python is there: no torch, no numpy, no pydantic."""
    report = tmp_path / "report.json"
    words = ["--output_dir", str(tmp_path), "--json", str(report)]
    done = subprocess.run([sys.executable, "-S", "tools/doctor.py", *words], cwd=root, capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1 and not done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    failed = {one["name"]: one for one in found["findings"] if one["status"] == "FAIL"}
    assert set(failed) == {"packages", "cv2", "torch", "attention", "bitsandbytes", "transformers", "video"}
    assert found["failed"] == len(failed)
    for line in requirements():
        assert f'"{line.partition(";")[0].strip()}"' in failed["packages"]["remedy"]
    assert "-m pip install torch" in failed["torch"]["remedy"]
    assert all(one["remedy"] for one in failed.values())
    assert "7 FAIL" in done.stdout and "FAIL  torch: needs the package torch" in done.stdout


def test_help_needs_no_package(root: Path) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", "tools.doctor", "--help"], cwd=root, capture_output=True,
                          text=True, timeout=20, check=True)
    assert all(flag in done.stdout for flag in ("--output_dir", "--cache_dir", "--json"))


@pytest.mark.slow
def test_this_machine_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tools.doctor.main(["--output_dir", str(tmp_path), "--json", str(tmp_path / "report.json")]) == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["findings"]
    printed = capsys.readouterr().out
    assert all(f"{one['status']:<4}  {one['name']}: {one['found']}" in printed for one in found)
    assert {f"attention {name}" for name in BACKENDS} <= {one["name"] for one in found}
    assert "0 FAIL" in printed


def test_a_check_that_raises_fails_alone() -> None:
    def raises(error: BaseException) -> Callable[[Patient], Iterable[Finding]]:
        def check(_: Patient) -> Iterable[Finding]:
            yield Finding("ok", "before", "kept")
            raise error
        return check

    for error, told in ((RuntimeError("CUDA error\n  on line two"), "RuntimeError: CUDA error on line two"),
                        (SystemExit("a library gave up"), "SystemExit: a library gave up")):
        before, failed = examine("probe", raises(error), HERE)
        assert before.found == "kept"
        assert (failed.status, failed.name, failed.found) == ("FAIL", "probe", told)
    lacking = list(examine("probe", raises(ModuleNotFoundError("no", name="cv2.gapi")), HERE))[1]
    assert lacking.remedy.endswith("-m pip install opencv-python-headless")


def test_what_is_not_ok_must_say_what_to_do() -> None:
    with pytest.raises(AssertionError, match="has a remedy"):
        Finding("FAIL", "probe", "broken")


@pytest.mark.parametrize("check", [check_python, check_processors, check_encoding, check_clock, check_trackers,
                                   check_versions, check_cv2, check_bitsandbytes, check_video])
def test_the_environment_of_the_tests_passes(check: Callable[[Patient], Iterable[Finding]]) -> None:
    found = list(examine("probe", check, HERE))
    assert found and not only(found, "FAIL")


def test_every_package_out_of_its_range_is_named(install: Callable[[str, str], None]) -> None:
    install("tqdm", "1.0")
    install("transformers", "6.1")
    failed = {one.name: one for one in only(check_versions(HERE), "FAIL")}
    assert failed["package tqdm"].found == "1.0; >=4.67 is needed"
    assert failed["package transformers"].remedy.endswith('-m pip install "transformers<6,>=4.57"')
    assert len(failed) == 2


def test_two_packages_that_own_cv2_are_found(install: Callable[[str, str], None]) -> None:
    install("opencv-contrib-python", "4.9.0")
    (failed,) = check_cv2(HERE)
    assert failed.status == "FAIL" and "opencv-contrib-python 4.9.0" in failed.found
    assert "pip uninstall -y opencv-python-headless opencv-contrib-python &&" in failed.remedy


def test_every_attention_back_end_is_tried() -> None:
    found = {one.name: one for one in check_attention(HERE)}
    assert set(found) == {f"attention {name}" for name in BACKENDS}
    for name in ("sdpa", "math"):
        assert found[f"attention {name}"].status == "ok"
        assert "masked gradient" in found[f"attention {name}"].found
    assert not only(found.values(), "FAIL")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_computes_with_every_back_end_that_is_installed() -> None:
    found = [*check_devices(HERE), *check_attention(Patient(device="cuda:0"))]
    assert not only(found, "FAIL") and found[0].name == "GPU 0"
    assert {one.name for one in only(found, "ok")} >= {"attention sdpa", "attention math", "attention efficient"}


def test_an_attention_that_computes_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BACKENDS["sdpa"]

    def ignores_the_mask(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        return right(q, k, v, None)

    def wrong_backward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        output = right(q, k, v, lengths)
        return output.detach() + 1.05 * (output - output.detach())

    for wrong, part in ((ignores_the_mask, "masked"), (wrong_backward, "gradient")):
        monkeypatch.setitem(BACKENDS, "efficient", wrong)
        failed = next(one for one in check_attention(HERE) if one.name == "attention efficient")
        assert failed.status == "FAIL" and "computes wrongly" in failed.remedy, part


def test_an_attention_that_gives_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "sdpa", lambda q, k, v, lengths: (q + k + v) * torch.nan)
    assert [one.name for one in only(check_attention(HERE), "FAIL")] == ["attention sdpa"]


def test_a_spoilt_picture_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(video_writer.VIDEO_OPTIONS, "crf", "51")
    (failed,) = check_video(HERE)
    assert failed.status == "FAIL" and "another picture than was written" in failed.found


def test_folders_are_tried_and_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    found = list(check_folders(Patient(tmp_path / "full", tmp_path / "new" / "deeper")))
    assert not only(found, "FAIL") and f"(to be made in {tmp_path})" in found[-1].found
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]
    (failed,) = only(check_folders(Patient(tmp_path / "file" / "below", tmp_path)), "FAIL")
    assert failed.name == "output_dir" and f"{tmp_path / 'file'} is a file" in failed.found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_fails() -> None:
    (failed,) = only(check_folders(Patient(Path("/proc"), Path())), "FAIL")
    assert failed.name == "output_dir" and "cannot be written" in failed.found and "--output_dir" in failed.remedy


@pytest.mark.parametrize(("text", "failed", "warned"), [
    ("distributed_type: 'NO'\nmixed_precision: bf16 # good\nnum_processes: 1\n", [], []),
    ("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\nmixed_precision: fp16\n", ["FSDP", "fp16"], []),
    ("distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 2\n", ["DEEPSPEED"], []),
    ("distributed_type: MULTI_GPU\nnum_processes: 64\ndynamo_config:\n  dynamo_backend: INDUCTOR\n",
     ["num_processes 64"], ["dynamo"]),
    ("mixed_precision: fp8\n", [], ["fp8"]),
])
def test_what_the_trainer_says_of_accelerates_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str,
                                                       failed: list[str], warned: list[str]) -> None:
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(text)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = list(check_accelerate_config(HERE))
    for status, expected in (("FAIL", failed), ("warn", warned)):
        told = [one.found for one in only(found, status)]
        assert len(told) == len(expected) and all(word in line for word, line in zip(expected, told, strict=True))
    assert bool(only(found, "ok")) == (not failed and not warned)


def test_the_trainers_words_are_the_trainers() -> None:
    assert FP16_REASON in FP16_REFUSED


def test_the_table_holds_every_check() -> None:
    folder = Path(tools.doctor.__file__).parent / "health"
    written = {line.split()[1].partition("(")[0] for path in folder.glob("*.py")
               for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("def check_")}
    assert {check.__name__ for check in CHECKS.values()} == written
