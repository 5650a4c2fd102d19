"""Models are told apart, and a task accepts its own."""

from dataclasses import replace
import re
import subprocess
import sys

import pytest

from common.errors import ConfigError, WeightsError
from wan.variants import DEFAULT_NEGATIVE_PROMPT, TASKS, Task, Variant, check_task, find_task

T2V_SMALL = Variant(dim=1536, ffn_dim=8960, layers=30, heads=12, in_channels=16, out_channels=16, text_dim=4096)
T2V_LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
I2V = replace(T2V_LARGE, in_channels=36, has_image_branch=True, image_dim=1280)
FLF2V = replace(I2V, has_image_positions=True)
FUN_SMALL = replace(T2V_SMALL, in_channels=48, has_image_branch=True, image_dim=1280)
FUN_LARGE = replace(I2V, in_channels=48)
RELEASED = {"t2v-1.3B": T2V_SMALL, "t2v-14B": T2V_LARGE, "t2i-14B": T2V_LARGE, "i2v-14B": I2V, "flf2v-14B": FLF2V,
            "t2v-1.3B-FC": FUN_SMALL, "t2v-14B-FC": FUN_LARGE, "i2v-14B-FC": FUN_LARGE}


def test_importing_needs_no_torch() -> None:
    code = "import sys, wan.variants; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_task_accepts_its_released_model() -> None:
    assert set(RELEASED) == set(TASKS)
    for name, variant in RELEASED.items():
        check_task(name, variant, "model.safetensors")
        assert variant.in_channels == TASKS[name].in_channels


@pytest.mark.parametrize(("task", "variant", "message"), [
    ("i2v-14B", T2V_LARGE, "x.safetensors does not fit --task i2v-14B: found t2v model of 16 input channels (5120 "
                           "wide, 40 layers); needed: i2v model of 36 input channels. Use --task t2v-1.3B or t2v-14B"),
    ("flf2v-14B", I2V, "Use --task i2v-14B, or give the weights of flf2v-14B"),
    ("t2v-14B", T2V_SMALL, "found t2v model of 16 input channels (1536 wide, 30 layers); needed: 5120 wide, 40 layers"),
])
def test_weights_of_another_model_are_refused_with_both_named(task: str, variant: Variant, message: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        check_task(task, variant, "x.safetensors")


def test_tiny_models_are_compared_by_family_only() -> None:
    tiny = replace(T2V_SMALL, dim=64, layers=4, heads=2)
    check_task("t2v-14B", tiny, "tiny.safetensors")
    with pytest.raises(WeightsError):
        check_task("i2v-14B", tiny, "tiny.safetensors")


def test_unknown_and_later_tasks_are_told_apart() -> None:
    with pytest.raises(ConfigError, match=re.escape("nearest: 't2v-14B'")):
        find_task("t2v14B")
    with pytest.raises(ConfigError, match="come later"):
        find_task("i2v-A14B")


def test_a_model_of_no_known_channels_is_refused() -> None:
    with pytest.raises(WeightsError, match="of 20 input and 16 output channels without an image branch"):
        _ = replace(T2V_LARGE, in_channels=20).family


def test_sizes_follow_from_channels_and_strides() -> None:
    assert (T2V_LARGE.head_dim, T2V_LARGE.latent_channels, T2V_LARGE.extra_channels) == (128, 16, 0)
    assert (I2V.extra_channels, FUN_LARGE.extra_channels, T2V_LARGE.spatial_multiple) == (20, 32, 16)
    assert (T2V_LARGE.image_tokens, I2V.image_tokens, FLF2V.image_tokens) == (0, 257, 514)


def test_defaults_of_generation_are_musubi_tuners() -> None:
    i2v = TASKS["i2v-14B"]
    assert (i2v.steps, i2v.guidance, i2v.shift_for(1280, 720)) == (40, 5.0, 5.0)
    assert i2v.shift_for(832, 480) == i2v.shift_for(480, 832) == 3.0
    assert TASKS["t2v-14B"].shift_for(832, 480) == 5.0
    assert (TASKS["t2v-1.3B"].steps, TASKS["t2i-14B"].frames, TASKS["t2v-1.3B"].fps) == (50, 1, 16)


def test_negative_prompts_have_the_tasks_words_in_front() -> None:
    def words(task: Task) -> str:
        return task.negative_prompt.removesuffix(DEFAULT_NEGATIVE_PROMPT)
    assert words(TASKS["t2v-14B"]) == ""
    assert words(TASKS["i2v-14B"]) == "镜头晃动，"
    assert words(TASKS["flf2v-14B"]) == "镜头切换，"
