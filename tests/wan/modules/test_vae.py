"""The VAE against the original's outputs, and the promises of streaming."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch

from common.errors import MediaError
from tests.light_set import light_input, light_outputs, light_state
from wan.encoders.vae import load_vae
from wan.modules.vae import LATENT_MEAN, LATENT_STD, Vae
from wan.modules.vae_coders import VaeShape
from wan.modules.vae_layers import PastFrames


@pytest.fixture(scope="module")
def vae() -> Vae:
    """The light set's VAE: width 8."""
    model = Vae(VaeShape(width=8)).requires_grad_(False)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    model.load_state_dict(light_state("vae", shapes, 0.2))
    return model


@pytest.mark.parametrize(("case", "shape"), [(0, (3, 1, 16, 24)), (1, (3, 9, 32, 16))])
def test_light_set_is_met(vae: Vae, case: int, shape: tuple[int, ...]) -> None:
    """Source: Wan 2.1's own VAE in float32; posterior mean, then decoded from it without clamping."""
    video = light_input(f"vae{case}.video", shape)[None]
    mean, expected = torch.cat(list(vae.posterior_means(video)), dim=2), light_outputs()
    decoded = torch.cat(list(vae.decode_means(expected[f"vae{case}.mu"][None])), dim=2)
    assert (mean[0] - expected[f"vae{case}.mu"]).abs().max() < 5e-5
    assert (decoded[0] - expected[f"vae{case}.decoded"]).abs().max() < 5e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "tolerance"), [("wan21_vae_b", 5e-5), ("wan21_vae", 2e-6)])
def test_golden_latents_and_frames_are_met(golden: Path, name: str, tolerance: float, dtype: torch.dtype) -> None:
    """Source: golden README sections 0 and 1. Normalised latents; frames clamped to -1…1."""
    model, cases = load_vae(golden / f"{name}.pth", dtype=dtype), load_file(golden / f"{name}_io.safetensors")
    for case in range(4):
        latents = model.encode(cases[f"{case}.video"][None])[0]
        frames = model.decode(cases[f"{case}.latent"][None])[0]
        assert latents.dtype == frames.dtype == dtype
        assert (latents - cases[f"{case}.latent"]).abs().max() < tolerance
        assert (frames - cases[f"{case}.decoded"]).abs().max() < tolerance


def test_latents_are_normalised_by_the_published_statistics(vae: Vae) -> None:
    video = light_input("statistics", (1, 3, 5, 16, 16))
    mean = torch.cat(list(vae.posterior_means(video)), dim=2)
    expected = (mean - torch.tensor(LATENT_MEAN)[:, None, None, None]) / torch.tensor(LATENT_STD)[:, None, None, None]
    torch.testing.assert_close(vae.encode(video), expected)


def test_a_batch_gives_what_its_members_give(vae: Vae) -> None:
    video = light_input("batch", (2, 3, 9, 16, 24))
    latents = vae.encode(video)
    torch.testing.assert_close(latents, torch.cat([vae.encode(video[:1]), vae.encode(video[1:])]), atol=1e-5, rtol=0)
    alone = torch.cat([vae.decode(latents[:1]), vae.decode(latents[1:])])
    torch.testing.assert_close(vae.decode(latents), alone, atol=1e-5, rtol=0)


def test_the_future_does_not_change_the_past(vae: Vae) -> None:
    video = light_input("causal", (1, 3, 9, 16, 16))
    whole = vae.encode(video)
    assert torch.equal(whole[:, :, :1], vae.encode(video[:, :, :1]))
    assert torch.equal(whole[:, :, :2], vae.encode(video[:, :, :5]))
    assert torch.equal(vae.decode(whole)[:, :, :5], vae.decode(whole[:, :, :2]))


def test_decode_chunks_come_as_one_frame_then_four(vae: Vae) -> None:
    latents = light_input("chunks", (1, 16, 3, 2, 2)) * 20
    chunks = list(vae.decode_chunks(latents))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    frames = vae.decode(latents)
    assert torch.equal(torch.cat(chunks, dim=2), frames)
    assert frames.abs().max() == 1, "these latents are large enough to be clamped"


def test_decoding_goes_on_where_an_earlier_call_ended(vae: Vae) -> None:
    latents = torch.randn(1, 16, 5, 2, 3, generator=torch.Generator().manual_seed(4))
    past = PastFrames()
    pieces = [frames for part in latents.split([2, 3], dim=2) for frames in vae.decode_chunks(part, past)]
    assert torch.equal(torch.cat(pieces, dim=2), vae.decode(latents))
    assert not torch.equal(vae.decode(latents[:, :, 2:])[:, :, 1:], vae.decode(latents)[:, :, 8:])


def test_memory_does_not_grow_with_the_length(vae: Vae) -> None:
    """The largest tensor inside, and all that is remembered between chunks, are the same for 9 and 25 frames."""
    def largest(frames: int) -> tuple[int, int]:
        sizes: list[int] = []
        hooks = [module.register_forward_hook(lambda _, inputs, output: sizes.append(output.numel()))
                 for module in vae.modules() if not list(module.children())]
        past = PastFrames()
        latents = vae.encode(torch.zeros(1, 3, frames, 16, 16))
        for frame in latents.split(1, dim=2):
            vae.decoder(frame, past)
        for hook in hooks:
            hook.remove()
        return max(sizes), sum(tensor.untyped_storage().nbytes() for tensor in past.values())

    assert largest(9) == largest(25)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 20, 16)])
def test_frames_or_sizes_that_the_original_would_cut_are_refused(vae: Vae, shape: tuple[int, ...]) -> None:
    with pytest.raises(MediaError, match="the VAE takes"):
        vae.encode(torch.zeros(shape))


def test_bfloat16_stays_near_float32(vae: Vae) -> None:
    video = light_input("half", (1, 3, 5, 16, 16))
    half = Vae(VaeShape(width=8)).requires_grad_(False)
    half.load_state_dict(vae.state_dict())
    half.to(torch.bfloat16)
    latents = half.encode(video)
    assert latents.dtype == torch.float32
    assert (latents - vae.encode(video)).abs().max() < 0.1


def test_gradients_reach_the_latents(vae: Vae) -> None:
    """Nothing in the VAE cuts the graph, so that rewards on frames can train a generator."""
    latents = light_input("gradient", (1, 16, 2, 2, 2)).requires_grad_()
    vae.decode(latents).sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
