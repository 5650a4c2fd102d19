"""Fixtures that every test may use."""

import gc
import os
from pathlib import Path

import pytest

# Before torch is imported, and for the commands that tests start: workers of pytest-xdist share the cores already, and
# threads that wait for one another on cores that others hold cost more than they bring at these sizes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("OMNITUNER_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="module", autouse=True)
def set_aside() -> None:
    """What is alive before a module's tests is set aside: torch and transformers are not looked through by each of the
    collections that generation and previews ask for when they let a model go (a third of a second, four a clip)."""
    gc.freeze()


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


@pytest.fixture(scope="session")
def control_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Fun-Control DiT: 16 noisy, 16 control and 16 image channels."""
    import torch

    from common.tensorfile import save_tensors
    from tools.tiny.dit import IMAGE_DIM
    from wan.modules.dit import WanDiT
    from wan.variants import Variant

    variant = Variant(dim=128, ffn_dim=64, layers=1, heads=1, in_channels=48, out_channels=16, text_dim=64,
                      has_image_branch=True, image_dim=IMAGE_DIM)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("control") / "fun_control.safetensors"
    save_tensors(path, WanDiT(variant).state_dict(), {})
    return path
