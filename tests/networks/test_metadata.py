"""Metadata of network files."""

from datetime import UTC, datetime
import hashlib
import json

import pytest
from safetensors import safe_open
import torch

from networks.files import save_network
from networks.lora_wan import create_network
from networks.metadata import ModelSpec, Origin, hashes, training_metadata
from tests.networks.toy import toy

NOW = datetime(2026, 11, 21, 3, 4, 5, 678, tzinfo=UTC)
FACTS = {"network_module": "networks.lora_wan", "network_dim": 4, "network_alpha": 1.0, "base_model_version": "wan",
         "network_args": {"rank_dropout": "0.1"}, "learning_rate": 1e-4, "seed": None, "fp8_base": False,
         "datasets": [{"name": "ein Gesicht", "size": [832, 480]}]}
ORIGIN = Origin(task="t2v-1.3B", variant={"family": "t2v", "dim": 1536}, fps=25.0, picture_mode="cover",
                conditions={"omniavatar_add": {"audio_hidden": "32"}}, encoders={"audio": {"weights": "ab12"}})


def metadata(**options):
    spec = ModelSpec("talk", (832, 480), author="us", timestep_range=(0, 875))
    return training_metadata(FACTS, spec, ORIGIN, now=NOW, **options)


def test_all_values_are_text():
    found = metadata()
    assert all(isinstance(value, str) for value in found.values())
    assert found["ss_network_dim"] == "4"
    assert found["ss_seed"] == "None"
    assert json.loads(found["ss_datasets"]) == FACTS["datasets"]
    assert json.loads(found["ss_network_args"]) == {"rank_dropout": "0.1"}


def test_model_spec_is_told():
    found = {key: value for key, value in metadata().items() if key.startswith("modelspec.")}
    assert found == {"modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "wan2.1/lora",
                     "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1", "modelspec.title": "talk",
                     "modelspec.date": "2026-11-21T03:04:05", "modelspec.resolution": "832x480",
                     "modelspec.author": "us", "modelspec.timestep_range": "0,875"}


def test_origin_is_read_back():
    assert Origin.read(metadata()) == ORIGIN
    assert Origin.read({"ss_seed": "1"}) is None
    assert Origin.read(Origin().text()) == Origin()


def test_minimal_metadata_keeps_what_a_reader_needs():
    found = metadata(minimal=True)
    assert {key for key in found if not key.startswith("modelspec.")} == {
        "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
        "omnituner.conditions", "omnituner.variant", "omnituner.encoders", "omnituner.fps", "omnituner.picture_mode"}
    assert Origin.read(found).encoders == ORIGIN.encoders, "a generation hears by them"


def test_a_name_that_kohya_does_not_know_is_our_mistake():
    with pytest.raises(AssertionError, match="learning_rat"):
        training_metadata({"learning_rat": 1}, ModelSpec("x"), Origin())


def test_hashes_are_kohyas(tmp_path):
    """sshs_model_hash is SHA-256 of everything behind the header, so it does not change with the metadata."""
    network = create_network(toy(), dim=4)
    path = tmp_path / "a.safetensors"
    save_network(path, network.state(), metadata())
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with safe_open(path, framework="pt") as file:
        written = file.metadata()
    assert written["sshs_model_hash"] == hashlib.sha256(data[start:]).hexdigest()
    assert len(written["sshs_legacy_hash"]) == 8
    other = hashes(network.state(), {"modelspec.title": "else"})
    assert other["sshs_model_hash"] == written["sshs_model_hash"]


def test_saved_tensors_keep_their_dtype(tmp_path):
    save_network(tmp_path / "a.safetensors", create_network(toy(), dim=4).state(torch.float16), {})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        dtypes = {key.rpartition(".")[2]: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert dtypes == {"weight": torch.float16, "alpha": torch.float32}
