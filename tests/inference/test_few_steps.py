"""Generations in few steps: listed times, their defaults, and a distilled LoRA beside another one."""

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError, NetworkFileError
from common.tensorfile import save_tensors
from inference import generate, load_pipeline
from networks.merge import merge_transform

TIMES = [1000.0, 750.0, 500.0, 250.0]


def test_listed_times_bring_the_steps_shift_solver_and_one_pass(ask, ask_talking):
    for request in (ask(infer_steps=None, denoising_steps=TIMES),
                    ask_talking(infer_steps=None, denoising_steps=TIMES)):
        plan = load_pipeline(request).plan(request)
        sampling = plan.sampling
        assert (sampling.solver, sampling.steps, sampling.shift) == ("euler", 4, 5.0)
        assert sampling.schedule.timesteps == pytest.approx((1000.0, 937.5, 2500 / 3, 625.0))
        assert [one.name for one in plan.guide().all_passes] == ["conditional"]
    asked = ask(infer_steps=4, denoising_steps=TIMES, flow_shift=3.0, guidance_scale=2.0, sample_solver="lcm")
    plan = load_pipeline(asked).plan(asked)
    assert (plan.sampling.solver, plan.sampling.shift, plan.guidance) == ("lcm", 3.0, 2.0), "what is given is kept"


def test_the_solvers_differ_and_the_seed_fixes_fresh_noise(ask):
    settings = {"infer_steps": None, "denoising_steps": TIMES, "video_length": 5}
    euler, lcm, again, other = (generate(ask(**settings, **changes)).latents for changes in (
        {}, {"sample_solver": "lcm"}, {"sample_solver": "lcm"}, {"sample_solver": "lcm", "seed": 4}))
    assert torch.equal(lcm, again) and not torch.allclose(euler, lcm) and not torch.allclose(lcm, other)
    assert torch.equal(euler, generate(ask(infer_steps=4, sample_solver="euler", flow_shift=5.0, guidance_scale=1.0,
                                           video_length=5)).latents), "four even times are these"


@pytest.mark.parametrize(("settings", "message"), [
    ({"denoising_steps": [250, 500]}, "falling times"), ({"denoising_steps": [1001]}, "falling times"),
    ({"denoising_steps": [500, 0]}, "falling times"), ({"denoising_steps": TIMES}, "--denoising_steps lists 4"),
    ({"denoising_steps": TIMES, "infer_steps": None, "sample_solver": "unipc"}, "spreads its steps by itself"),
    ({"cfg_skip_mode": "late"}, "belong together"), ({"cfg_apply_ratio": 0.5}, "belong together"),
    ({"cfg_skip_mode": "late", "cfg_apply_ratio": 0.5, "guidance_interval": (0.0, 0.5)}, "which steps are guided"),
])
def test_what_contradicts_itself_is_refused(ask, settings, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        ask(**settings)


def test_late_skipping_is_the_interval_that_it_names(ask):
    settings = {"infer_steps": 4, "video_length": 5, "guidance_scale": 4.0}
    skipped = generate(ask(**settings, cfg_skip_mode="late", cfg_apply_ratio=0.5)).latents
    assert torch.equal(skipped, generate(ask(**settings, guidance_interval=(0.0, 0.5))).latents)
    assert not torch.equal(skipped, generate(ask(**settings)).latents)


@pytest.fixture
def distilled(tiny_weights, tmp_path):
    """A file in the layout of the distilled LoRAs of LightX2V and Kijai, with its tensors and the base's."""
    base = load_file(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    source = torch.Generator().manual_seed(5)

    def draw(*shape):
        return 0.02 * torch.randn(shape, generator=source)

    linears = [name.removesuffix(".weight") for name, tensor in base.items()
               if name.endswith(".weight") and tensor.ndim == 2]
    tensors = {}
    for name in linears:
        outputs, inputs = base[f"{name}.weight"].shape
        if name == "head.head":
            tensors[f"{name}.diff"] = draw(outputs, inputs)
        else:
            tensors |= {f"{name}.lora_down.weight": draw(3, inputs), f"{name}.lora_up.weight": draw(outputs, 3)}
        tensors[f"{name}.diff_b"] = draw(outputs)
    for name, tensor in base.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "weight" and tensor.ndim == 1:
            tensors[f"{stem}.diff"] = draw(*tensor.shape)
        if leaf == "bias" and f"{stem}.diff" in tensors and stem not in linears:
            tensors[f"{stem}.diff_b"] = draw(*tensor.shape)
        if leaf == "modulation":
            tensors[f"{stem}.diff_m"] = draw(*tensor.shape)
    tensors |= {"patch_embedding.diff": draw(*base["patch_embedding.weight"].shape),
                "patch_embedding.diff_b": draw(*base["patch_embedding.bias"].shape)}
    path = tmp_path / "distilled.safetensors"
    save_tensors(path, {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}, {})
    return path, tensors, base


def test_every_part_of_a_distilled_lora_is_merged_by_its_formula(distilled):
    """W + m·up·down (no alpha: strength 1), bias + m·diff_b, norm + m·diff, modulation + m·diff_m."""
    path, tensors, base = distilled
    merge = merge_transform([(path, 0.75)], base)
    used = set()
    for name, tensor in base.items():
        stem, _, leaf = name.rpartition(".")
        expected = torch.zeros_like(tensor)
        down, direct = f"{stem}.lora_down.weight", stem + {"weight": ".diff", "bias": ".diff_b",
                                                           "modulation": ".diff_m"}[leaf]
        if leaf == "weight" and down in tensors:
            expected, used = tensors[f"{stem}.lora_up.weight"] @ tensors[down], used | {down, f"{stem}.lora_up.weight"}
        if direct in tensors:
            expected, used = expected + tensors[direct], used | {direct}
        torch.testing.assert_close(merge(name, tensor), tensor + 0.75 * expected, msg=name)
    assert used == set(tensors), "the file's keys are all there are"
    [report] = merge.reports()
    assert report.unused == [] and report.others == []


def test_keys_that_match_nothing_are_told(distilled, tmp_path):
    path, tensors, base = distilled
    extra = {"diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": torch.zeros(2, 4),
             "diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight": torch.zeros(4, 2),
             "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.zeros(4)}
    other = tmp_path / "image.safetensors"
    save_tensors(other, load_file(path) | extra, {})
    [report] = merge_transform([(other, 1.0)], base).check(base)
    assert sorted(report.unused) == ["blocks.0.cross_attn.k_img", "blocks.0.cross_attn.norm_k_img"]
    assert "k_img" in report.text()


def test_a_distilled_lora_runs_beside_one_with_sound(ask_talking, audio_lora, distilled):
    settings = {"infer_steps": None, "denoising_steps": [1000, 500], "video_length": 5}
    alone = generate(ask_talking(**settings)).latents
    both = generate(ask_talking(**settings, lora_weight=[audio_lora, distilled[0]])).latents
    assert both.isfinite().all() and not torch.allclose(alone, both)
    with pytest.raises(NetworkFileError, match="only be merged"):
        generate(ask_talking(**settings, lora_weight=[audio_lora, distilled[0]], lora_attach=True))
