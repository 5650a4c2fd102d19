"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("OMNITUNER_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def root() -> Path:
    """Top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden outputs, manifests and real media; a test that asks for it is skipped where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"needs the shared test material ({SHARED}); set OMNITUNER_SHARED to its folder")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Folder of the golden vectors."""
    return shared / "golden"


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny random weights that `tools/tiny_weights.py` writes; made once a session, not to be changed."""
    from tools.tiny.write import write_tiny_weights

    folder = tmp_path_factory.mktemp("tiny_weights")
    write_tiny_weights(folder)
    return folder
