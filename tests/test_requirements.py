"""requirements.txt pins what pyproject.toml allows, nothing more and nothing less."""

from pathlib import Path
import tomllib

from packaging.markers import default_environment
from packaging.requirements import Requirement
import pytest


def pins(path: Path) -> list[Requirement]:
    """The requirement lines of a pin file."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def active(requirements: list[Requirement], python: str) -> dict[str, Requirement]:
    """Requirements that hold on Linux with that Python, by name."""
    environment = {**default_environment(), "python_version": python, "sys_platform": "linux"}
    return {r.name: r for r in requirements if r.marker is None or r.marker.evaluate(environment)}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize(("file", "extra"), [("requirements.txt", None), ("requirements-dev.txt", "dev")])
def test_pins_and_ranges_name_the_same_packages(root: Path, python: str, file: str, extra: str | None) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = project["optional-dependencies"][extra] if extra else project["dependencies"]
    ranges = active([Requirement(text) for text in listed], python)
    pinned = active(pins(root / file), python)
    assert set(pinned) == set(ranges)
    for name, pin in pinned.items():
        (only,) = pin.specifier
        assert only.operator == "==", f"{name} is not pinned exactly"
        assert ranges[name].specifier.contains(only.version), f"{name} {only.version}: not in {ranges[name].specifier}"


def test_every_dependency_is_defended_in_the_docs(root: Path) -> None:
    text = (root / "docs" / "dependencies.md").read_text(encoding="utf-8").lower()
    missing = [pin.name for pin in pins(root / "requirements.txt") if pin.name.lower() not in text]
    assert not missing


def test_installer_pins_the_torch_of_the_requirements(root: Path) -> None:
    torch = next(pin for pin in pins(root / "requirements.txt") if pin.name == "torch")
    assert f'TORCH_VERSION = "{next(iter(torch.specifier)).version}"' in (root / "tools" / "install.py").read_text()
