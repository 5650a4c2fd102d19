"""Behaviour of the DiT that needs no numbers from elsewhere."""

import dataclasses
import json
from pathlib import Path
import re

import pytest
import torch
from torch import Tensor

from common.errors import ConditionError
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from wan.modules.dit import WanDiT
from wan.variants import Variant

I2V = tiny_variant(in_channels=36, has_image_branch=True, image_dim=20)
FLF2V = dataclasses.replace(I2V, has_image_positions=True)
FUN_CONTROL = dataclasses.replace(I2V, in_channels=48)


def test_forward_is_embed_run_block_and_head() -> None:
    dit = tiny_dit()
    latents, timestep, text = tiny_inputs()
    tokens, inputs = dit.embed(latents, timestep, text)
    assert tokens.shape == (2, 3 * 2 * 3, 32)
    for i in range(len(dit.blocks)):
        tokens = dit.run_block(i, tokens, inputs)
    assert torch.equal(dit.head(tokens, inputs), dit(latents, timestep, text))


@pytest.mark.parametrize("variant", [tiny_variant(), I2V, FLF2V, FUN_CONTROL], ids=lambda v: v.family)
def test_batch_of_two_equals_two_batches_of_one_in_output_and_gradient(variant: Variant) -> None:
    dit = tiny_dit(variant)
    latents, timestep, text = tiny_inputs()
    extras = _extras(variant)
    weights = [dit.blocks[0].ffn[0].weight.requires_grad_(), dit.patch_embedding.weight.requires_grad_()]

    def loss(velocity: Tensor) -> Tensor:
        return (velocity**2).mean(dim=(1, 2, 3, 4)).sum()

    together = dit(latents, timestep, text, **extras)
    expected = torch.autograd.grad(loss(together), weights)
    alone = [dit(latents[b:b + 1], timestep[b:b + 1], text[b:b + 1],
                 **{name: value[b:b + 1] for name, value in extras.items()}) for b in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=1e-5)
    found = torch.autograd.grad(loss(torch.cat(alone)), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def _extras(variant: Variant) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(3)
    extras = {}
    if variant.extra_channels:
        extras["channels"] = torch.randn(2, variant.extra_channels, 3, 4, 6, generator=draws)
    if variant.has_image_branch:
        extras["clip_features"] = torch.randn(2, variant.image_tokens, 20, generator=draws)
    return extras


def test_a_timestep_per_token_equals_one_per_sample_where_all_are_the_same() -> None:
    dit = tiny_dit()
    latents, timestep, text = tiny_inputs()
    per_token = dit(latents, timestep[:, None].expand(-1, 18), text)
    torch.testing.assert_close(per_token, dit(latents, timestep, text), atol=1e-6, rtol=1e-5)


def test_a_clean_first_frame_has_a_timestep_of_its_own() -> None:
    dit = tiny_dit()
    latents, timestep, text = tiny_inputs()
    per_token = timestep[:, None].expand(-1, 18).clone()
    per_token[:, :6] = 0
    assert not torch.allclose(dit(latents, per_token, text), dit(latents, timestep, text), atol=1e-3)


def test_prompts_may_come_as_one_tensor_and_are_padded_with_zeros() -> None:
    dit = tiny_dit()
    latents, timestep, _ = tiny_inputs()
    text = torch.randn(2, 5, 12)
    padded = torch.cat((text, torch.zeros(2, 507, 12)), dim=1)
    assert torch.equal(dit(latents, timestep, text), dit(latents, timestep, list(padded)))


def test_fun_control_without_clip_features_sees_zeros_of_them() -> None:
    dit = tiny_dit(FUN_CONTROL)
    latents, timestep, text = tiny_inputs()
    channels = _extras(FUN_CONTROL)["channels"]
    zeros = dit(latents, timestep, text, channels=channels, clip_features=torch.zeros(2, 257, 20))
    assert torch.equal(dit(latents, timestep, text, channels=channels), zeros)


def test_velocity_has_the_dtype_of_the_latents_and_bfloat16_weights_stay_close() -> None:
    exact, rounded = tiny_dit(), tiny_dit(dtype=torch.bfloat16)
    latents, timestep, text = tiny_inputs()
    velocity = rounded(latents, timestep, text)
    assert velocity.dtype == torch.float32
    assert rounded(latents.bfloat16(), timestep, text).dtype == torch.bfloat16
    reference = exact(latents, timestep, text)
    assert (velocity - reference).abs().max() < 0.05 * reference.abs().max()


@pytest.mark.parametrize(("variant", "change", "message"), [
    (tiny_variant(), {"channels": torch.zeros(2, 20, 3, 4, 6)}, "16 latent and 0 extra channels; got 16 and 20"),
    (tiny_variant(), {"clip_features": torch.zeros(2, 257, 20)}, "no image branch"),
    (tiny_variant(), {"timestep": torch.zeros(2, 7)}, "7 timesteps a sample"),
    (tiny_variant(), {"text": [torch.zeros(600, 12), torch.zeros(1, 12)]}, "600 tokens; the model takes 512"),
    (tiny_variant(), {"latents": torch.zeros(2, 16, 3, 4, 5)}, "multiples of 16"),
    (I2V, {}, "20 extra channels; got 16 and 0"),
    (I2V, {"channels": torch.zeros(2, 20, 3, 4, 6), "clip_features": None}, "needs clip_features"),
    (FLF2V, {"clip_features": torch.zeros(2, 257, 20)}, "257 tokens; this flf2v model takes 514"),
])
def test_a_wrong_input_is_refused_with_what_was_found_and_expected(variant: Variant, change: dict, message: str
                                                                   ) -> None:
    latents, timestep, text = tiny_inputs()
    inputs = {"latents": latents, "timestep": timestep, "text": text}
    if variant.has_image_branch:
        inputs["clip_features"] = torch.zeros(2, variant.image_tokens, 20)
    with pytest.raises(ConditionError, match=re.escape(message)):
        tiny_dit(variant)(**{**inputs, **change})


MANIFESTS = {
    "wan21_t2v_1.3B": Variant(dim=1536, ffn_dim=8960, layers=30, heads=12, in_channels=16, out_channels=16,
                              text_dim=4096),
    "wan21_t2v_14B": Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16,
                             text_dim=4096),
    "wan21_i2v_14B": Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=36, out_channels=16,
                             text_dim=4096, has_image_branch=True, image_dim=1280),
    "wan21_flf2v_14B": Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=36, out_channels=16,
                               text_dim=4096, has_image_branch=True, image_dim=1280, has_image_positions=True),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_parameters_have_the_names_and_shapes_of_the_released_files(shared: Path, name: str) -> None:
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        state = WanDiT(MANIFESTS[name]).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == {
        key: shape for key, (shape, _) in manifest["tensors"].items()}
