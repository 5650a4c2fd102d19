"""The preflight as users meet it: nothing written, nothing changed, figures that the run then has."""

from pathlib import Path
import subprocess
import sys

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from tests.training.runs import settings
from training import train
from training.checkpoints import CheckpointPlan
from training.estimating.disk_estimate import FileCounts, count_files
from training.estimating.memory_estimate import SavedNetwork


def test_a_dry_run_tells_all_and_writes_nothing(talking: Path, weights: Path, tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out"
    words = ["--dataset_config", str(talking), "--dit", str(weights / "wan2.1_t2v_tiny.safetensors"), "--output_dir",
             str(out), "--network_dim", "4", "--network_args", "conditions=omniavatar_add", "--max_train_steps", "50",
             "--save_every_n_steps", "10", "--validation_count", "1", "--dry_run"]
    data = sorted(path for path in talking.parent.rglob("*"))
    done = subprocess.run([sys.executable, str(root / "train_network.py"), *words], capture_output=True, text=True,
                          cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stderr[done.stderr.index("preflight ("):]
    for row in ("32x32x9: 4", "= tensors at the peak", "50 steps left", "forward and backward (measured on",
                "validation: 2 times", "at most 6 at once, 6 in the end", "2 stay"):
        assert row in told
    assert [*tmp_path.iterdir()] == [] and sorted(path for path in talking.parent.rglob("*")) == data


def test_a_preflight_changes_no_number_and_finds_the_sizes_of_files(
        talking: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"network_args": ["conditions=omniavatar_add"], "network_dropout": 0.1, "save_every_n_steps": 1,
            "save_last_n_steps": 2, "save_precision": "bf16", "max_train_steps": 4}
    caplog.set_level("INFO", "training")
    looked = train(settings(talking, weights, tmp_path / "looked", preflight=True, **more))
    plain = train(settings(talking, weights, tmp_path / "plain", **more))
    assert looked is not None and plain is not None
    first, second = load_file(looked), load_file(plain)
    assert all(torch.equal(first[key], second[key]) for key in first)
    counts = count_files(CheckpointPlan(tmp_path, "t", every_steps=1, keep_steps=2), steps=4, steps_per_epoch=5)
    assert counts == FileCounts(most=4, left=4) and len([*looked.parent.glob("*.safetensors")]) == counts.left
    saved = SavedNetwork(sum(tensor.numel() for key, tensor in first.items() if not key.endswith(".alpha")),
                         sum(key.endswith(".alpha") for key in first), sum(len(key) + 70 for key in first))
    size = looked.stat().st_size
    assert size == pytest.approx(saved.bytes_at(torch.bfloat16), rel=0.05)
    shown = f"a checkpoint {saved.bytes_at(torch.bfloat16) / 2**20:.1f} MiB"
    assert f"{shown}: at most 4 at once, 4 in the end" in caplog.text
    state = sum(path.stat().st_size for path in (looked.parent / "t-step00000004-state").rglob("*"))
    told = float(caplog.text.split("a state to go on from ")[1].split(" MiB")[0])
    assert told * 2**20 == pytest.approx(state, rel=0.15)


def test_too_little_memory_is_told_with_what_would_help(talking: Path, weights: Path, tmp_path: Path,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "training")
    assert train(settings(talking, weights, tmp_path / "out", dry_run=True, preflight_device="cuda", fp8_base=True,
                          optimizer_type="sgd", preflight_vram=0.7)) is None
    (warning,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING"
                  and "preflight" in one.getMessage())
    assert "\n  --gradient_checkpointing: " in warning
    assert "--fp8_base" not in warning and "adamw8bit" not in warning, "taken already, or nothing to save"
    assert "NOT ENOUGH" in caplog.text and "not known here" in caplog.text and "460 TFLOP/s" in caplog.text
    assert not (tmp_path / "out").exists()


def test_settings_that_wait_for_a_preflight_are_refused(talking: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preflight_vram belongs to an estimate"):
        settings(talking, weights, tmp_path, preflight_vram=24)


@pytest.mark.parametrize(("plan", "steps", "per_epoch", "expected"), [
    ({}, 100, 10, FileCounts(1, 1)),
    ({"every_steps": 10}, 100, 30, FileCounts(11, 11)),
    ({"every_steps": 10, "keep_steps": 20}, 100, 30, FileCounts(4, 4)),
    ({"every_epochs": 2}, 100, 10, FileCounts(5, 5)),  # epochs 2 4 6 8; the tenth is the final file
    ({"every_epochs": 1, "keep_epochs": 2, "at_first": True}, 100, 10, FileCounts(4, 4)),
    ({"every_steps": 50, "every_epochs": 5, "at_first": True}, 100, 10, FileCounts(5, 5)),
])
def test_files_are_counted_as_they_come_and_go(plan: dict[str, int], steps: int, per_epoch: int, expected: FileCounts,
                                               tmp_path: Path) -> None:
    assert count_files(CheckpointPlan(tmp_path, "t", **plan), steps=steps, steps_per_epoch=per_epoch) == expected  # type: ignore[arg-type]
