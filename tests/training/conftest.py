"""Weights and cached clips that several tests train on."""

from pathlib import Path

import pytest
import torch

from tests.training.runs import prepare_data


@pytest.fixture(scope="session")
def weights(tiny_weights: Path) -> Path:
    """The tiny weights; torch is held to one thread from here on."""
    torch.set_num_threads(1)
    return tiny_weights


@pytest.fixture(scope="session")
def talking(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Dataset of clips of nine frames with latents, text, sound and reference latents."""
    return prepare_data(tmp_path_factory.mktemp("talking"), root, weights, ["latents", "text", "audio"])
