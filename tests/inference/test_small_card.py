"""Generation on a small card: swapped blocks and a text encoder on the CPU change no number."""

import pytest
import torch
from torch import nn

from common.errors import ConfigError
from inference import generate
from inference.pipeline import load_pipeline
from wan.memory.swap import BlockSwap


@pytest.mark.parametrize("attach", [False, True])
def test_swapped_blocks_change_no_number_merged_or_beside(ask_talking, attach, monkeypatch):
    asked = {"video_length": 5, "infer_steps": 1, "lora_attach": attach}
    plain = generate(ask_talking(**asked)).latents
    made = []
    monkeypatch.setattr("inference.models.BlockSwap", lambda *args: made.append(BlockSwap(*args)) or made[-1])
    assert torch.equal(generate(ask_talking(blocks_to_swap=3, **asked)).latents, plain)
    assert len(made) == 1 and len(made[0].blocks) == 3


def test_swapped_blocks_go_with_float8_and_teacache(ask):
    asked = {"video_length": 5, "infer_steps": 4, "fp8_scaled": True, "teacache_threshold": 0.1}
    plain = generate(ask(**asked)).latents
    assert torch.equal(generate(ask(blocks_to_swap=2, text_encoder_cpu=True, **asked)).latents, plain)


def test_more_blocks_than_there_are_are_refused_before_loading(ask):
    with pytest.raises(ConfigError, match="--blocks_to_swap 90: this model has"):
        generate(ask(blocks_to_swap=90))


def test_a_text_encoder_in_float8_generates(ask):
    asked = {"video_length": 5, "infer_steps": 2}
    plain, small = generate(ask(**asked)).latents, generate(ask(fp8_t5=True, **asked)).latents
    assert not torch.equal(plain, small)
    assert (plain - small).norm() < 0.1 * plain.norm()


class Elsewhere(nn.Linear):
    """Stands for a VAE on another device, and tells where it is sent."""

    def __init__(self):
        super().__init__(1, 1, device="meta")
        self.sent = []

    def to(self, device):
        self.sent.append(str(device))
        return self


@pytest.mark.parametrize(("swapped", "sent"), [(0, []), (2, ["cpu"])])
def test_with_swapped_blocks_the_vae_is_off_the_device_while_the_dit_samples(ask, swapped, sent):
    vae = Elsewhere()
    models = load_pipeline(ask(blocks_to_swap=swapped), vae=vae).models
    with models.parked():
        assert vae.sent == sent
    assert vae.sent == sent + [str(models.device)] * len(sent)
