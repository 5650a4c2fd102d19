"""What the DiT keeps from step to step of one pass."""

import torch

from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from wan.modules.constants import Constants


def test_later_steps_are_bit_equal_and_embed_text_and_picture_once():
    variant = tiny_variant(in_channels=36, has_image_branch=True, image_dim=8)
    dit = tiny_dit(variant)
    latents, _, text = tiny_inputs(1, variant=variant)
    named = {"channels": torch.randn(1, 20, *latents.shape[2:]), "clip_features": torch.randn(1, 257, 8)}
    calls = []
    for module in (dit.text_embedding, dit.img_emb, dit.time_embedding):
        module.register_forward_hook(lambda module, inputs, result: calls.append(module))
    constants = Constants()
    for time in (900.0, 500.0, 20.0):
        kept = dit(latents * time, torch.tensor([time]), text, constants=constants, **named)
        calls_of_plain = len(calls)
        assert torch.equal(kept, dit(latents * time, torch.tensor([time]), text, **named))
        del calls[calls_of_plain:]
    assert [calls.count(one) for one in (dit.text_embedding, dit.img_emb, dit.time_embedding)] == [1, 1, 3]
