"""Clips that the cache scripts are tried on."""

from pathlib import Path

import pytest

from tests.demo_clips import copy_clips, write_toml


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """Folder with two of the demo's clips and their dataset, data.toml: clips of nine frames."""
    copy_clips(root, tmp_path / "clips", range(2))
    write_toml(tmp_path)
    return tmp_path
