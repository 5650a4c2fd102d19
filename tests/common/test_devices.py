"""Picking a device, and its memory."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from common.devices import grow_memory_in_place, pick_device, within_share
from common.errors import ConfigError
from tests.conftest import ROOT


def test_each_process_of_a_launch_has_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (pick_device(), pick_device("cuda"), pick_device("cuda:1"), pick_device("cpu")) == (
        "cuda:3", "cuda:3", "cuda:1", "cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == "cpu"
    for name, told in (("cuda", "finds no CUDA device"), ("tpu", "unknown")):
        with pytest.raises(ConfigError, match=told):
            pick_device(name)


def test_a_limited_process_counts_on_its_share_and_no_more() -> None:
    assert within_share(130, 141, 1.0) == 130  # others use 11
    assert within_share(130, 141, 0.5) == 70


SCRIPTS = ("cache_latents", "cache_text_encoder_outputs", "cache_audio_features", "cache_conditions", "train_network",
           "generate_video")
ASK_HELP = """
import importlib, os, sys
for name in sys.argv[1:]:
    os.environ.pop("PYTORCH_ALLOC_CONF", None)
    sys.argv = [name, "--help"]
    try:
        importlib.import_module(name).main()
    except SystemExit:
        pass
    print("told", name, os.environ.get("PYTORCH_ALLOC_CONF"), "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux" or "microsoft" in platform.release().lower(),
                    reason="torch's allocator grows in place on Linux alone")
def test_every_script_has_gpu_memory_grow_in_place_before_torch_is_there() -> None:
    environment = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    told = subprocess.run([sys.executable, "-c", ASK_HELP, *SCRIPTS], cwd=ROOT, env=environment, capture_output=True,
                          text=True, check=True).stdout.splitlines()
    assert [line for line in told if line.startswith("told")] == [
        f"told {name} expandable_segments:True False" for name in SCRIPTS]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_what_the_user_has_set_for_the_allocator_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for one in [one for one in os.environ if one.endswith("ALLOC_CONF")]:
        monkeypatch.delenv(one)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    before = dict(os.environ)
    grow_memory_in_place()
    assert dict(os.environ) == before


@pytest.mark.parametrize(("system", "release", "is_taken"), [
    ("win32", "11", False), ("linux", "6.6.87.2-microsoft-standard-WSL2", False), ("linux", "6.8.0-45-generic", True)])
def test_the_allocator_grows_in_place_on_linux_alone(monkeypatch: pytest.MonkeyPatch, system: str, release: str,
                                                     is_taken: bool) -> None:
    for one in [one for one in os.environ if one.endswith("ALLOC_CONF")]:
        monkeypatch.delenv(one)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.release", lambda: release)
    before = dict(os.environ)
    grow_memory_in_place()
    assert (dict(os.environ) != before) == is_taken
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that it is taken back
