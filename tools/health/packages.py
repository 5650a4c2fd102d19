"""Installed packages against the ranges of pyproject.toml; packages that get in each other's way; trackers."""

from collections.abc import Iterator
from importlib import metadata
import os
from pathlib import Path
import re
import tomllib

from tools.health.finding import Finding, Patient, pip_install, told

ROOT = Path(__file__).resolve().parent.parent.parent
CV2_PACKAGES = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
TRACKERS = ("tensorboard", "wandb")


def requirements() -> list[str]:
    """Lines of pyproject.toml's dependencies."""
    return list(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"])


def _line(requirement: object) -> str:
    """Name and range, without the marker that says where it holds."""
    return str(requirement).partition(";")[0].strip()


def version_of(package: str) -> str | None:
    """Installed version by pip's records; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_versions(_: Patient) -> Iterator[Finding]:
    """Every dependency: there, and in its range."""
    wanted = requirements()
    if version_of("packaging") is None:
        missing = [_line(line) for line in wanted if version_of(re.split(r"[<>=!~; \[]", line, maxsplit=1)[0]) is None]
        yield Finding("FAIL", "packages", f"{len(missing)} of {len(wanted)} are not installed; versions cannot be "
                      "compared without the package packaging", pip_install(*missing, "packaging"))
        return
    from packaging.requirements import Requirement

    asked = [one for one in map(Requirement, wanted) if one.marker is None or one.marker.evaluate()]
    versions = {one.name: version_of(one.name) for one in asked}
    missing = [_line(one) for one in asked if versions[one.name] is None]
    others = [one for one in asked if (found := versions[one.name]) is not None
              and not one.specifier.contains(found, prereleases=True)]
    if missing:
        yield Finding("FAIL", "packages", f"{len(missing)} of {len(asked)} are not installed: "
                      f"{', '.join(re.split('[<>=]', line, maxsplit=1)[0] for line in missing)}", pip_install(*missing))
    for one in others:
        yield Finding("FAIL", f"package {one.name}", f"{versions[one.name]}; {one.specifier} is needed",
                      pip_install(_line(one)))
    if not missing and not others:
        told_ones = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "accelerate", "av"))
        yield Finding("ok", "packages", f"all {len(asked)} in their ranges ({told_ones}, …)")


def check_cv2(_: Patient) -> Iterator[Finding]:
    """One package only may own the folder cv2, and it must import."""
    found = {name: version for name in CV2_PACKAGES if (version := version_of(name)) is not None}
    text = ", ".join(f"{name} {version}" for name, version in found.items()) or "no opencv package"
    again = "" if not found else "--force-reinstall --no-deps "
    if len(found) > 1:
        yield Finding("FAIL", "cv2", f"{text}: they overwrite each other's files", "keep one: pip uninstall -y "
                      f"{' '.join(found)} && pip install opencv-python-headless")
        return
    try:
        import cv2

        version = cv2.__version__
        cv2.setNumThreads(cv2.getNumThreads())  # a name of the compiled part: an emptied folder still imports
    except ModuleNotFoundError:
        yield Finding("FAIL", "cv2", f"{text}, and no module cv2", pip_install(f"{again}opencv-python-headless"))
    except (ImportError, AttributeError) as error:
        yield Finding("FAIL", "cv2", f"{text}: does not import ({told(error)})",
                      "take the build that needs no system libraries: pip uninstall -y "
                      f"{' '.join(found) or 'opencv-python'} && pip install opencv-python-headless")
    else:
        yield Finding("ok", "cv2", f"{text}, imports as {version}")


def check_transformers(_: Patient) -> Iterator[Finding]:
    """The classes of the encoders import."""
    from transformers import CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model, __version__

    names = ", ".join(one.__name__ for one in (UMT5EncoderModel, CLIPVisionModel, Wav2Vec2Model))
    yield Finding("ok", "transformers", f"{__version__}: {names} import")


def check_trackers(_: Patient) -> Iterator[Finding]:
    """Which trackers `--log_with` may name. Nothing here asks the network."""
    for name in TRACKERS:
        version = version_of(name)
        if version is None:
            yield Finding("ok", f"tracker {name}", f"not installed; optional (pip install {name}). metrics.jsonl is "
                                                   "always written")
        elif name == "wandb":
            yield _wandb(version)
        else:
            yield Finding("ok", f"tracker {name}", f"{version}; --logging_dir DIR uses it")


def _wandb(version: str) -> Finding:
    mode = os.environ.get("WANDB_MODE", "online")
    return Finding("ok", "tracker wandb", f"{version}, mode {mode} (WANDB_MODE=offline keeps everything on this "
                                          "machine); the server was not asked")
