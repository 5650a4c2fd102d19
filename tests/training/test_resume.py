"""Whole runs that stop and go on."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import shutil
import signal
import threading
import time
from typing import Any

import pytest
from safetensors.torch import load_file
import torch

from benchmarks.faults.runs import unequal
from common.config import flags_of
from common.errors import ConfigError
from common.treefile import load_tree
from tests.training.runs import settings
from training import train
from training.config import TrainConfig
from training.guard import NonFiniteLoss
from training.keeping.resume import rules_table, sufficient_reason
from training.keeping.resume_rules import RULES, Rule
from training.keeping.state_settings import StateSection
from training.signals import Interrupted


def end(out: Path) -> dict[str, Any]:
    """Everything that a run ended with."""
    state = max(out.glob("t-step*-state"))
    run = load_tree(state / "run.safetensors")
    run["callbacks"].pop("metrics", None)  # how many bytes of a file that tells the time
    return {"file": load_file(out / "t.safetensors"), "raw": load_file(state / "network.safetensors"),
            "learning": load_tree(state / "optimizer.safetensors"), "run": run}


def steps_of(out: Path) -> list[int]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def stopped(config: TrainConfig, out: Path, at: int, number: int = signal.SIGTERM) -> None:
    """Run `config` and send it a signal as soon as step `at` is written down."""
    def send() -> None:
        while not (out / "metrics.jsonl").exists() or max([0, *steps_of(out)]) < at:
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=send)
    watcher.start()
    with pytest.raises(Interrupted) as caught:
        train(config)
    watcher.join()
    assert caught.value.number == number


Config = Callable[..., TrainConfig]


@pytest.mark.parametrize("more", [
    {"network_args": ["conditions=omniavatar_add"], "network_dropout": 0.1, "gradient_accumulation_steps": 2},
    {"optimizer_type": "AdamW8bit", "lr_scheduler": "cosine", "lr_warmup_steps": 4, "scale_weight_norms": 0.5},
    {"optimizer_type": "Prodigy", "learning_rate": 1.0, "num_timestep_buckets": 4},
], ids=["audio", "8 bit", "prodigy"])
def test_a_stopped_run_ends_as_one_that_was_left_alone(talking: Path, weights: Path, tmp_path: Path,
                                                       more: dict[str, Any]) -> None:
    common = {"max_train_steps": 14, **more}
    train(settings(talking, weights, tmp_path / "a", **common))
    config = settings(talking, weights, tmp_path / "b", **common)
    stopped(config, tmp_path / "b", 3)
    assert not (tmp_path / "b" / "t.safetensors").exists()
    torch.manual_seed(99)
    train(config)
    assert not unequal(end(tmp_path / "a"), end(tmp_path / "b"))
    record = json.loads((tmp_path / "b" / "training_state.json").read_text())
    assert (record["status"], record["step"], record["starts"]) == ("finished", 14, 2)
    assert not [path.name for path in (tmp_path / "b").iterdir() if path.name.startswith(".")]


def test_going_on_is_loud_and_a_finished_run_has_nothing_to_do(talking: Path, weights: Path, tmp_path: Path,
                                                               caplog: pytest.LogCaptureFixture) -> None:
    config = settings(talking, weights, tmp_path)
    (tmp_path / "save_quit").write_text("")
    with pytest.raises(Interrupted):
        train(config)
    assert not (tmp_path / "save_quit").exists()
    with caplog.at_level("INFO"):
        train(config)
        written = (tmp_path / "t.safetensors").stat().st_mtime_ns
        assert "GOING ON from t-step00000001-state: step 1 of 5" in caplog.text
        assert train(config) == tmp_path / "t.safetensors"
    assert "this run is finished: 5 of 5 steps" in caplog.text and "--force" in caplog.text
    assert (tmp_path / "t.safetensors").stat().st_mtime_ns == written


def test_a_longer_run_goes_on_from_the_finished_one(talking: Path, weights: Path, tmp_path: Path) -> None:
    train(settings(talking, weights, tmp_path / "a", max_train_steps=9))
    train(settings(talking, weights, tmp_path / "b", max_train_steps=5))
    train(settings(talking, weights, tmp_path / "b", max_train_steps=9))
    assert not unequal(end(tmp_path / "a")["raw"], end(tmp_path / "b")["raw"])


def test_force_begins_anew_and_deletes_nothing(talking: Path, weights: Path, tmp_path: Path) -> None:
    config = settings(talking, weights, tmp_path)
    train(config)
    first = end(tmp_path)
    train(settings(talking, weights, tmp_path, force=True))
    assert not unequal(first["raw"], end(tmp_path)["raw"])
    [before] = tmp_path.glob("t-before-*")
    assert {path.name for path in before.iterdir()} == {"t.safetensors", "t-step00000005-state", "training_state.json"}
    assert json.loads((tmp_path / "training_state.json").read_text())["starts"] == 1


def test_states_rotate_and_the_newest_survives_all(talking: Path, weights: Path, tmp_path: Path) -> None:
    train(settings(talking, weights, tmp_path, max_train_steps=6, save_state_every_n_steps=1, save_last_n_states=3))
    assert sorted(path.name for path in tmp_path.glob("*-state")) == [f"t-step0000000{n}-state" for n in (4, 5, 6)]
    train(settings(talking, weights, tmp_path, max_train_steps=8, save_last_n_states=1))
    assert [path.name for path in tmp_path.glob("*-state")] == ["t-step00000008-state"]


def test_a_named_older_state_is_gone_on_from_and_newer_ones_are_put_aside(talking: Path, weights: Path,
                                                                          tmp_path: Path) -> None:
    more = {"max_train_steps": 6, "save_state_every_n_steps": 2, "save_last_n_states": 9}
    train(settings(talking, weights, tmp_path, **more))
    whole = end(tmp_path)
    train(settings(talking, weights, tmp_path, resume=str(tmp_path / "t-step00000002-state"), **more))
    assert not unequal(whole["raw"], end(tmp_path)["raw"])
    assert sorted(path.name.split(".")[0] for path in tmp_path.glob("*.left-*")) == [
        "t-step00000004-state", "t-step00000006-state"]
    with pytest.raises(ConfigError, match="--resume .*nowhere: no such folder. Name another state"):
        train(settings(talking, weights, tmp_path, resume=str(tmp_path / "nowhere")))


def test_nan_in_a_cached_clip_stops_and_the_mended_run_goes_on(talking: Path, weights: Path, tmp_path: Path) -> None:
    """The item is named, the weights before the step are kept, and the end is as if nothing had happened."""
    folder = tmp_path / "data"
    shutil.copytree(talking.parent, folder)
    data = folder / talking.name
    data.write_text(data.read_text().replace(talking.parent.as_posix(), folder.as_posix()), encoding="utf-8")
    train(settings(data, weights, tmp_path / "a"))
    spoilt = sorted((folder / "cache").glob("*.latents.safetensors"))[2]
    good = spoilt.read_bytes()
    raw = bytearray(good)
    raw[-8:] = b"\xff\xff\xff\x7f" * 2  # NaN in float32, in the last frame
    spoilt.write_bytes(bytes(raw))
    with pytest.raises(NonFiniteLoss, match="the loss is not finite; the weights were not touched.*head_002"):
        train(settings(data, weights, tmp_path / "b"))
    record = json.loads((tmp_path / "b" / "training_state.json").read_text())
    assert record["status"] == "failed" and "head_002" in record["reason"]
    spoilt.write_bytes(good)
    train(settings(data, weights, tmp_path / "b"))
    assert not unequal(end(tmp_path / "a"), end(tmp_path / "b"))


VALUES: dict[str, Any] = {
    "max_train_steps": 7, "learning_rate": 2e-3, "network_dim": 8, "seed": 8, "lr_scheduler": "cosine",
    "save_precision": "bf16", "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "network_alpha": 2.0,
    "discrete_flow_shift": 4.0, "optimizer_type": "AdamW8bit", "save_every_n_steps": 2, "timestep_sampling": "sigmoid",
    "network_args": ["rank_dropout=0.1"], "training_comment": "changed", "max_tokens": 1000}


@pytest.mark.parametrize("name", VALUES)
def test_each_rule_is_kept(talking: Path, weights: Path, tmp_path: Path, name: str,
                           caplog: pytest.LogCaptureFixture) -> None:
    """A changed setting goes through, is told, or is refused, as its word in the table says."""
    (tmp_path / "save_quit").write_text("")
    with pytest.raises(Interrupted):
        train(settings(talking, weights, tmp_path))
    rule, changed = RULES[name], settings(talking, weights, tmp_path, **{name: VALUES[name]})
    if rule in (Rule.FREE, Rule.TOLD):
        train(changed)
        assert (f"--{name} was" in caplog.text) == (rule is Rule.TOLD)
        return
    with pytest.raises(ConfigError, match=f"--{name} was .* is .*({rule.value})"):
        train(changed)
    fresh = settings(talking, weights, tmp_path, resume_weights_only=True, **{name: VALUES[name]})
    if rule is Rule.FRESH:
        train(fresh)
        assert json.loads((tmp_path / "training_state.json").read_text())["starts"] == 1
    else:
        with pytest.raises(ConfigError, match=f"--{name} was"):
            train(fresh)


def test_every_setting_has_a_rule_and_the_docs_have_the_table(root: Path) -> None:
    names = {field.name for field in flags_of(TrainConfig)}
    assert names == set(RULES), names ^ set(RULES)
    assert rules_table() in (root / "docs" / "resume.md").read_text(encoding="utf-8")


def test_other_clips_are_refused_or_begin_a_new_epoch(talking: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "save_quit").write_text("")
    with pytest.raises(Interrupted):
        train(settings(talking, weights, tmp_path / "out"))
    text = talking.read_text(encoding="utf-8")
    other = talking.with_name("batch2.toml")
    other.write_text(text.replace("batch_size = 1", "batch_size = 2"), encoding="utf-8")
    with pytest.raises(ConfigError, match="batch size or the number of processes are not those of the run"):
        train(settings(other, weights, tmp_path / "out"))
    train(settings(other, weights, tmp_path / "out", resume_new_data=True))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    samples = [(line["epoch"], line["samples"]) for line in lines if "loss" in line]
    assert samples[0] == (1, 1) and sorted(samples[1:4]) == [(2, 1), (2, 2), (2, 2)]


def test_another_base_is_refused(talking: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "save_quit").write_text("")
    with pytest.raises(Interrupted):
        train(settings(talking, weights, tmp_path))
    other = tmp_path / "other.safetensors"
    raw = bytearray((weights / "wan2.1_t2v_tiny.safetensors").read_bytes())
    raw[-1] ^= 1
    other.write_bytes(bytes(raw))
    with pytest.raises(ConfigError, match="--dit is another file"):
        train(settings(talking, weights, tmp_path, dit=other))


def test_a_second_training_of_the_name_is_kept_out(talking: Path, weights: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    tmp_path.mkdir(exist_ok=True)
    with FileLock(tmp_path / ".training.lock"), pytest.raises(ConfigError, match="another training runs in"):
        train(settings(talking, weights, tmp_path))


@pytest.mark.parametrize(("epochs", "options", "is_done"), [
    (90, {"min_sufficient_epochs": 90}, False), (91, {"min_sufficient_epochs": 90}, True), (91, {}, False)])
def test_the_sufficiency_rule(epochs: int, options: dict[str, Any], is_done: bool) -> None:
    reason = sufficient_reason(epochs, StateSection(**options), "state")
    assert bool(reason) == is_done and ("--continue_training" in reason) == is_done


def test_what_a_run_wrote_before_it_had_a_state_is_done_again(talking: Path, weights: Path, tmp_path: Path) -> None:
    """Killed in its first steps, it leaves lines and nothing to go on from."""
    lines = [{"event": "start", "run": "t", "first_step": 1, "total_steps": 5}, {"step": 1, "epoch": 1, "loss": 9.0}]
    other = [{"event": "start", "run": "other", "first_step": 1, "total_steps": 1},
             {"step": 1, "epoch": 1, "loss": 8.0, "loss_average": 8.0},
             {"event": "finished", "run": "other", "step": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*other, *lines]) + '{"st')
    train(settings(talking, weights, tmp_path))
    assert steps_of(tmp_path) == [1, 1, 2, 3, 4, 5]
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"loss": 8.0' in text and '"loss": 9.0' not in text
