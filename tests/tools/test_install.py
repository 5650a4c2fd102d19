"""The installer: which Triton it brings, and where it keeps away."""

from pathlib import Path
import sys

import pytest

import tools.install as install


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What pip was asked for, by an interpreter that has nothing but Python's own modules and `tmp_path`."""
    asked: list[str] = []
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys._base_executable} -S "$@"\n')  # type: ignore[attr-defined]
    bare.chmod(0o755)
    monkeypatch.setattr(install, "venv_python", lambda: bare)
    monkeypatch.setattr(install, "pip", lambda *arguments, quiet_failure=False: asked.append(*arguments) or False)
    on(monkeypatch, "Linux", "x86_64")
    return asked


def on(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(install.platform, "system", lambda: system)
    monkeypatch.setattr(install.platform, "machine", lambda: machine)


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the interpreter is a shell script here")


def test_triton_comes_where_there_is_none_and_may_fail(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    install.install_triton()
    assert asked == [f"triton=={install.TRITON_VERSION}"]
    assert "tests of GPU kernels will be skipped" in capsys.readouterr().out


def test_a_triton_is_never_replaced_though_it_may_not_load(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise ImportError('libstdc++ is too old')")
    install.install_triton()
    assert asked == []


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "aarch64")])
def test_where_there_is_no_build_nothing_is_asked(system: str, machine: str, asked: list[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, system, machine)
    install.install_triton()
    assert asked == []


@pytest.mark.parametrize("arguments", [[], ["--dev"]])
def test_only_developers_get_triton(arguments: list[str], asked: list[str], tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "install_torch", lambda: None)
    monkeypatch.setattr(install, "pip", lambda *parts, quiet_failure=False: asked.extend(parts) or True)
    monkeypatch.setattr(sys, "argv", ["install.py", *arguments])
    install.main()
    assert (f"triton=={install.TRITON_VERSION}" in asked) == bool(arguments)
    asked.clear()
    install.main()
    assert asked == []
