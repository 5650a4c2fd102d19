"""The version that files name."""

import tomllib

from common.version import VERSION


def test_version_is_that_of_the_package(root):
    assert tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == VERSION
