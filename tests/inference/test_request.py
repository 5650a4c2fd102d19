"""The settings of a generation at the door."""

import subprocess
import sys

import pytest

from common.config import parse
from common.errors import ConfigError
from inference.foreign import FOREIGN
from inference.request import GenerationRequest


def read(*words: str) -> GenerationRequest:
    return parse(GenerationRequest, list(words), prog="generate_video.py", description="", foreign=FOREIGN)


def test_musubi_spellings_are_read():
    request = read("--task", "i2v-14B", "--video_size", "480", "832", "--lora_weight", "a.safetensors", "b.safetensors",
                   "--lora_multiplier", "0.5", "1", "--sample_solver", "vanilla", "--prompt", "-- odd", "--fp8_scaled")
    assert request.video_size == (480, 832) and request.multipliers() == [0.5, 1.0] and request.fp8_scaled
    assert read("--lora_weight", "a", "b", "--lora_multiplier", "0.7").multipliers() == [0.7, 0.7]
    assert read("--lora_weight", "a", "b").multipliers() == [1.0, 1.0]


@pytest.mark.parametrize(("words", "message"), [
    (["--video_length", "80"], "Use 77 or 81"),
    (["--video_length", "0"], "at least 1 frame"),
    (["--task", "t2v-A14B"], "come later"),
    (["--task", "t2v-15B"], "nearest: 't2v-1"),
    (["--lora_weight", "a", "b", "--lora_multiplier", "1", "2", "3"], "3 values for 2 LoRA files"),
    (["--sample_solver", "unipcc"], "nearest: 'unipc'"),
    (["--exclude_patterns", "("], "no regular expression"),
    (["--save_path", "x.webm"], "written as .mp4"),
    (["--attn_mode", "xformers"], "computes the same"),
    (["--guidance_scal", "3"], "nearest: '--guidance_scale'"),
    (["--compile_args", "a"], "given this form up"),
    (["--compile", "--compile_mode", "reduce-overhead", "--blocks_to_swap", "3"], "--blocks_to_swap moves it"),
])
def test_wrong_settings_are_refused_with_the_remedy(words, message):
    with pytest.raises(ConfigError, match=message):
        read(*words)


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        read("--video_length", "80", "--task", "t2v-15B", "--colour", "red")
    assert all(part in str(caught.value) for part in ("77 or 81", "--task t2v-15B", "unknown flag --colour"))


def test_the_command_line_knows_no_torch():
    code = "import sys, inference.request, inference.foreign, inference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
