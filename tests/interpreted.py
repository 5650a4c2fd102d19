"""Triton's interpreter for tests of kernels where there is no GPU."""

from importlib.util import find_spec
import os
from pathlib import Path
import subprocess
import sys

import pytest

from tests.conftest import ROOT

needs_triton = pytest.mark.skipif(find_spec("triton") is None,
                                  reason="needs Triton, which `make test` installs on Linux alone")


def run_interpreted(code: str, folder: Path) -> None:
    """Run Python code with kernels interpreted; AssertionError with its traceback where it fails.

    In a process of its own: Triton asks once, when it is imported, whether to interpret. `folder` is for its cache.
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(folder)})
    assert done.returncode == 0, done.stderr
