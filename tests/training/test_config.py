"""Settings of a training run: what is refused, and that they print as a file that reproduces them."""

from pathlib import Path
import shlex
from typing import Any

import pytest

from common.config import parse, to_toml
from common.errors import ConfigError
from training.config import TrainConfig
from training.foreign import FOREIGN

MINIMUM = {"dataset_config": "data.toml", "dit": "dit.safetensors", "output_dir": "out"}


def config(**more: Any) -> TrainConfig:
    return TrainConfig.from_flags(**MINIMUM, **more)


@pytest.mark.parametrize(("flags", "words"), [
    ({"task": "t2v-A14B"}, "come later"),
    ({"task": "t2v-13B"}, "nearest: 't2v-1.3B'"),
    ({"mixed_precision": "fp16"}, "overflow float16"),
    ({"sdpa": True, "flash_attn": True}, "Give one"),
    ({"timestep_sampling": "sigmod"}, "nearest: 'sigmoid'"),
    ({"min_timestep": 800, "max_timestep": 200}, "must be below"),
    ({"network_module": "lycoris.kohya"}, "Use networks.lycoris_wan"),
    ({"network_args": ["rank_dropout"]}, "not of the form key=value"),
    ({"dim_from_weights": True}, "needs --network_weights"),
    ({"output_name": "a/b"}, "no plain file name"),
    ({"save_last_n_steps": 100}, "needs --save_every_n_steps"),
    ({"base_weights_multiplier": [1.0]}, "1 values for 0"),
    ({"max_train_steps": 0}, "greater than or equal to 1"),
    ({"validation_split": 0.1, "validation_count": 2}, "both say what is held out. Give one"),
    ({"validation_split": 1.5}, "less than or equal to 1"),
    ({"validation_count": 0}, "greater than or equal to 1"),
    ({"validation_split": 0.1, "validation_count": 2, "validation_items": ["a.mp4"]}, "all say what is held out"),
    ({"validate_every_n_steps": 10}, "needs files that are held out"),
    ({"early_stopping_patience_steps": 10}, "--early_stopping_patience_steps needs files that are held out"),
    ({"early_stopping_patience_evals": 3}, "--early_stopping_patience_evals needs files that are held out"),
    ({"save_best": True}, "--save_best needs files that are held out"),
    ({"validation_count": 1, "early_stopping_min_delta": 0.1}, "--early_stopping_min_delta needs"),
    ({"validation_count": 1, "early_stopping_metric": "loss"}, "early_stopping_metric"),
    ({"validation_split": 0.1, "validation_sigmas": [0.5, 0.0]}, "--validation_sigmas 0: a noise level lies above 0"),
    ({"validation_split": 0.1, "validation_sigmas": []}, "needs at least one noise level"),
])
def test_settings_that_cannot_work_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**flags)


@pytest.mark.parametrize(("flags", "name"), [
    ({"sdpa": True, "attn_mode": "torch"}, "sdpa"), ({"flash_attn": True, "attn_mode": "flash2"}, "flash_attn"),
    ({}, "auto")])
def test_two_names_of_one_attention_do_not_contradict(flags: dict[str, Any], name: str) -> None:
    assert config(**flags).speed.attention == name


@pytest.mark.parametrize("moving", ["blocks_to_swap", "gradient_checkpointing_cpu_offload"])
def test_graphs_are_not_recorded_of_what_moves(moving: str) -> None:
    flags: dict[str, Any] = {"gradient_checkpointing": True, moving: True}
    with pytest.raises(ConfigError, match=f"compile_mode reduce-overhead .* --{moving} moves it"):
        config(compile_mode="reduce-overhead", **flags)
    config(compile_mode="max-autotune-no-cudagraphs", **flags)
    config(compile_mode="reduce-overhead")
    config(compile_mode="reduce-overhead", compile="off", **flags)


def test_problems_of_several_sections_come_together() -> None:
    with pytest.raises(ConfigError, match="4 problems") as caught:
        config(task="x", learning_rate=-1, output_name="a/b", network_args=["a"])
    assert "learning_rate" in str(caught.value)


def test_every_setting_survives_printing(tmp_path: Path) -> None:
    full = config(task="i2v-14B", network_dim=32, network_alpha=16, network_args=["conditions=omniavatar_add"],
                  lr_warmup_steps="10%", max_train_epochs=3, save_every_n_steps=5, base_weights=["a.safetensors"],
                  fp8_base=True, seed=3, validation_items=["a.mp4"], validation_sigmas=[0.5, 1.0], save_best=False,
                  early_stopping_patience_evals=3)
    (tmp_path / "run.toml").write_text(to_toml(full), encoding="utf-8")
    again = parse(TrainConfig, ["--config_file", str(tmp_path / "run.toml")], prog="t", description="", foreign=FOREIGN)
    assert again == full


def test_the_command_of_musubis_page_is_understood() -> None:
    words = shlex.split(
        "--task t2v-1.3B --dit d --dataset_config c --sdpa --mixed_precision bf16 --fp8_base --optimizer_type "
        "adamw8bit --learning_rate 2e-4 --gradient_checkpointing --max_data_loader_n_workers 2 "
        "--persistent_data_loader_workers --network_module networks.lora_wan --network_dim 32 "
        "--timestep_sampling shift --discrete_flow_shift 3.0 --max_train_epochs 16 --save_every_n_epochs 1 "
        "--seed 42 --output_dir o --output_name n")
    settings = parse(TrainConfig, words, prog="train_network.py", description="", foreign=FOREIGN)
    assert settings.speed.uses_fp8 and settings.network.network_alpha == 1 and settings.speed.attention == "sdpa"


def test_merges_pair_files_with_strengths() -> None:
    data = config(base_weights=["a", "b"], base_weights_multiplier=[0.5]).data
    assert data.merges == [(Path("a"), 0.5), (Path("b"), 1.0)]
