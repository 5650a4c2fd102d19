"""Generating with a merged DiT, as tools/merge_lora.py advises, is generating with the LoRA."""

import torch

from inference import generate
from tools.merge_lora import main


def test_a_merged_dit_with_its_condition_generates_the_same_latents(ask_talking, audio_lora, tiny_weights, tmp_path):
    merged = tmp_path / "merged.safetensors"
    main(["--dit", str(tiny_weights / "wan2.1_t2v_tiny.safetensors"), "--lora_weight", str(audio_lora),
          "--dtype", "fp32", "--out", str(merged)])
    asked = {"video_length": 5, "guidance_scale": 1, "infer_steps": 1}
    latents = generate(ask_talking(**asked)).latents
    assert torch.equal(generate(ask_talking(dit=merged, no_lora=True, **asked)).latents, latents)
