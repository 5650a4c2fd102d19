"""The habits of the house: layers, sizes, and scripts that answer at once and explain every flag."""

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys
import time

import pytest

from common.config import Section, flags_of
from inference.request import GenerationRequest
from precompute.config import AudioSettings, ConditionSettings, LatentSettings, TextSettings
from tests.conftest import ROOT
from training.config import TrainConfig

ROOMS = ("common", "wan", "networks", "dataset", "evaluation", "precompute", "inference", "training")
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 80, 8
HELP_SECONDS = 2.0
SCRIPTS: dict[str, type[Section]] = {
    "cache_latents.py": LatentSettings, "cache_text_encoder_outputs.py": TextSettings,
    "cache_audio_features.py": AudioSettings, "cache_conditions.py": ConditionSettings,
    "train_network.py": TrainConfig, "generate_video.py": GenerationRequest}

ALLOWED = {
    "tests/common/media/clips.py:write_clip": "makes every kind of odd file, one switch each",
}
"""Files, and functions as file:name, that are over a limit, each with the reason."""


def python_files(*folders: str) -> Iterator[Path]:
    tops = [ROOT / folder for folder in folders] if folders else [
        path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name != "demo-run"]
    for top in tops:
        yield from [top] if top.suffix == ".py" else sorted(top.rglob("*.py")) if top.is_dir() else []


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Beside `self`; none for a Triton kernel, which is given every pointer, size and switch by itself."""
    if any(ast.unparse(one) == "triton.jit" for one in function.decorator_list):
        return 0
    own = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(own) - (own[:1] in (["self"], ["cls"]))


def too_large() -> dict[str, str]:
    """Place → what is too large there."""
    found = {}
    for path in python_files():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > FILE_LINES:
            found[place(path)] = f"{lines} lines"
        for one in functions(path):
            length, count = (one.end_lineno or one.lineno) - one.lineno + 1, parameters(one)
            if length > FUNCTION_LINES or count > PARAMETERS:
                found[f"{place(path)}:{one.name}"] = f"{length} lines, {count} parameters"
    return found


def test_imports_run_downward() -> None:
    # In a process of its own: it sets up logging, and would silence every logger of the tests that follow.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_and_functions_keep_their_size() -> None:
    found = too_large()
    assert {name: size for name, size in found.items() if name not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found), "no longer over a limit: take it off the list"


@pytest.mark.parametrize(("needle", "homes"), [
    ("scaled_dot_product_attention(", {"wan/modules/attention.py"}),
    ("float8_e4m3fn", {"wan/memory/fp8.py", "common/dtypes.py", "wan/weights/files.py", "wan/weights/source.py"}),
    ("libx264", {"common/media/video_writer.py"}),
    ("safetensors.torch import save_file", {"common/tensorfile.py"}),
    ("import argparse", {"common/config/command_line.py"}),
])
def test_what_has_one_home_stays_there(needle: str, homes: set[str]) -> None:
    found = {place(path) for path in python_files(*ROOMS) if needle in path.read_text(encoding="utf-8")}
    assert found and found <= homes


def test_pickles_are_never_run() -> None:
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
                assert safe, f"{place(path)}:{node.lineno}"


def test_no_error_is_swallowed() -> None:
    for path in python_files(*ROOMS, "tools"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                is_silent = all(isinstance(one, ast.Pass) for one in node.body)
                assert not is_silent, f"{place(path)}:{node.lineno}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_and_explains_every_flag(script: str) -> None:
    def shown() -> tuple[float, str]:
        started = time.monotonic()
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        return time.monotonic() - started, done.stdout

    seconds, text = shown()
    if seconds > HELP_SECONDS:  # the first start may have compiled, and other tests run beside this one
        seconds = min(seconds, shown()[0])
    assert seconds < HELP_SECONDS
    for field in flags_of(SCRIPTS[script]):
        assert f"--{field.name}" in text and field.help, field.name


def test_every_script_is_looked_at() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == set(SCRIPTS)
