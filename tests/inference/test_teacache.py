"""TeaCache: its decisions against the original's, and what it does to a generation."""

import pytest
from safetensors.torch import load_file
import torch

from inference import generate
from inference.teacache import COEFFICIENTS, TeaCache, coefficients_for
from tests.tiny_dit import tiny_variant


def test_the_originals_decisions_are_met(golden):
    """Every model, threshold and number of steps of the stored runs."""
    stored = load_file(golden / "omniavatar_teacache_io.safetensors")
    cases = [name for name in stored if name.endswith(".skip")]
    assert len(cases) == 36
    for name in cases:
        case, model, whole, fraction, _ = name.replace("1.3B", "1-3B").replace("Wan2.1", "Wan2-1").split(".")
        model = model.replace("1-3B", "1.3B").replace("Wan2-1", "Wan2.1")
        modulations = stored[f"{case}.t_mod"]
        rule = TeaCache(float(f"{whole}.{fraction}"), COEFFICIENTS[model])
        found = [rule.decide(modulation, is_last=i == len(modulations) - 1)
                 for i, modulation in enumerate(modulations)]
        assert found == stored[name].bool().tolist(), name


@pytest.mark.parametrize(("changes", "size", "name"), [
    ({"dim": 5120}, (832, 480), "Wan2.1-T2V-14B"), ({"dim": 1536}, (832, 480), "Wan2.1-T2V-1.3B"),
    ({"in_channels": 36, "has_image_branch": True, "image_dim": 8}, (832, 480), "Wan2.1-I2V-14B-480P"),
    ({"in_channels": 36, "has_image_branch": True, "image_dim": 8}, (1280, 720), "Wan2.1-I2V-14B-720P"),
])
def test_coefficients_are_those_of_the_model_that_runs(changes, size, name):
    assert coefficients_for(tiny_variant(**changes), size) == name


def test_a_generation_with_teacache_skips_alike_in_every_pass(ask_talking, caplog):
    settings = {"infer_steps": 8, "sample_solver": "euler", "guidance_scale": 3.0, "audio_scale": 2.0}
    plain = generate(ask_talking(**settings)).latents
    with caplog.at_level("INFO"):
        cached = generate(ask_talking(**settings, teacache_threshold=0.3)).latents
    [line] = [message for message in caplog.messages if "model calls skipped" in message]
    skipped = int(line.split()[1])
    assert 0 < skipped <= 18 and skipped % 3 == 0, "three passes, first and last step computed"
    assert torch.equal(cached[:, 0], plain[:, 0]) and not torch.equal(cached, plain) and cached.isfinite().all()
    again = generate(ask_talking(**settings, step_cache="teacache", step_cache_threshold=0.3)).latents
    assert torch.equal(again, cached), "two spellings of one thing"
