"""The fused VAE computes what its modules do; its kernel what its form in torch does."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
import torch.nn.functional as F

from tests.interpreted import needs_triton, run_interpreted
from tests.light_set import light_input, light_outputs, light_state
from wan.memory.vae_fused import _phase_weights
from wan.memory.vae_rows import LAST, Pending, Wanted, _by_torch, finish, why_not
from wan.memory.vae_speed import VaeSpeed, speed_up
from wan.modules.vae import Vae
from wan.modules.vae_coders import VaeShape

PLENTY = 1 << 40


def made(dtype: torch.dtype) -> Vae:
    model = Vae(VaeShape(width=8)).requires_grad_(False)
    model.load_state_dict(light_state("vae", {key: one.shape for key, one in model.state_dict().items()}, 0.2))
    return model.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@pytest.mark.parametrize("clips", [1, 2])
def test_fused_chunks_give_the_numbers_of_the_modules(dtype: torch.dtype, tolerance: float, clips: int) -> None:
    """Against one latent frame at a time; chunks of one, two and three, and 1x1 latent places at the coarsest."""
    vae = made(dtype)
    video = light_input("fused", (clips, 3, 17, 16, 24)).to(dtype)
    latents = vae.encode(video)
    frames = vae.decode(latents)
    for length in (1, 2, 3):
        speed_up(vae, VaeSpeed(length, length, fused=True, budget_bytes=PLENTY))
        for found, expected in ((vae.encode(video), latents), (vae.decode(latents), frames)):
            assert found.dtype == expected.dtype and (found - expected).abs().max() < tolerance


def test_fused_chunks_meet_the_originals_outputs() -> None:
    """Source: Wan 2.1's own VAE in float32."""
    vae = speed_up(made(torch.float32), VaeSpeed(2, 2, fused=True, budget_bytes=PLENTY))
    video, expected = light_input("vae1.video", (3, 9, 32, 16))[None], light_outputs()
    assert (torch.cat(list(vae.posterior_means(video)), dim=2)[0] - expected["vae1.mu"]).abs().max() < 5e-5
    decoded = torch.cat(list(vae.decode_means(expected["vae1.mu"][None])), dim=2)[0]
    assert (decoded - expected["vae1.decoded"]).abs().max() < 5e-5


def test_what_was_fused_before_is_not_written_over() -> None:
    """The video and the latents that are given stay as they were."""
    vae = speed_up(made(torch.float32), VaeSpeed(2, 2, fused=True, budget_bytes=PLENTY))
    video = light_input("kept", (1, 3, 9, 16, 16)).contiguous(memory_format=LAST)
    before = video.clone()
    latents = vae.encode(video)
    held = latents.clone()
    vae.decode(latents)
    assert torch.equal(video, before) and torch.equal(latents, held)


def test_gradients_take_the_plain_path() -> None:
    vae = made(torch.float32)
    latents = light_input("gradient", (1, 16, 2, 2, 2)).requires_grad_()
    (expected,) = torch.autograd.grad(vae.decode(latents).square().sum(), latents)
    speed_up(vae, VaeSpeed(fused=True, budget_bytes=PLENTY))
    (found,) = torch.autograd.grad(vae.decode(latents).square().sum(), latents)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_doubling_then_convolving_is_convolving_in_four_phases() -> None:
    x, weight = light_input("phases", (2, 5, 3, 4)).double(), light_input("weights", (6, 5, 3, 3)).double()
    doubled = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    phases = F.conv2d(x, _phase_weights(weight), padding=1)
    whole, _ = finish(Pending(phases[:, :, None].contiguous(memory_format=LAST), phased=True), Wanted(copied=False))
    assert whole is not None
    torch.testing.assert_close(whole[:, :, 0], doubled, atol=1e-12, rtol=0)


def test_a_pass_writes_the_sum_in_place_and_the_copy_where_it_is_wanted() -> None:
    conv, skipped = (light_input(name, (2, 3, 2, 4, 5)).contiguous(memory_format=LAST) for name in ("conv", "skip"))
    bias, gamma = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 2.0, -1.0])
    expected = conv + bias[:, None, None, None] + skipped
    total, copy = finish(Pending(conv, bias, skipped), Wanted(gamma, activated=True, room=2))
    assert total is conv and copy is not None and copy.shape == (2, 3, 4, 4, 5)
    torch.testing.assert_close(total, expected)
    normed = expected / expected.norm(dim=1, keepdim=True) * 3**0.5 * gamma[:, None, None, None]
    torch.testing.assert_close(copy[:, :, 2:], normed * normed.sigmoid())
    _, padded = finish(Pending(expected), Wanted(padded=True))
    assert padded is not None
    torch.testing.assert_close(padded, F.pad(expected, (0, 1, 0, 1)), atol=0, rtol=0)


def test_the_kernel_is_refused_with_a_reason_off_cuda() -> None:
    assert "cpu" in why_not(torch.device("cpu"))


def kernel_equals_torch(device: str) -> None:
    """Every switch of the kernel against `_by_torch`."""
    from wan.memory.vae_rows_triton import finish_rows

    torch.manual_seed(0)

    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=LAST)

    places = [(1, 24, 2, False), (2, 8, 1, False), (2, 12, 0, True)]
    for (batch, channels, room, padded), dtype, phased, full in product(
            places, (torch.float32, torch.bfloat16), (False, True), (False, True)):
        shape = (batch, channels, 3, 4, 6)
        conv = random(batch, 4 * channels, 3, 3, 4, dtype=dtype) if phased else random(*shape, dtype=dtype)
        bias, gamma = (torch.randn(channels, device=device).to(dtype) if full else None for _ in range(2))
        skipped = random(*shape, dtype=dtype) if full else None
        results = []
        for run in (finish_rows, _by_torch):
            total = random(*shape, dtype=dtype)
            copy = torch.zeros(batch, channels, 3 + room, 4 + padded, 6 + padded, device=device, dtype=dtype)
            copy = copy.contiguous(memory_format=LAST)
            run(Pending(conv, bias, skipped, phased), Wanted(gamma, full, room, padded), total, copy)
            results.append((total, copy))
        tolerance = 1e-5 if dtype == torch.float32 else 4e-2
        torch.testing.assert_close(results[0], results[1], atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_does_what_torch_does() -> None:
    kernel_equals_torch("cuda")
    assert not why_not(torch.device("cuda"))


@pytest.mark.slow
@needs_triton
def test_the_kernel_does_what_torch_does_under_the_interpreter(tmp_path: Path) -> None:
    code = "from tests.wan.memory.test_vae_fused import kernel_equals_torch; kernel_equals_torch('cpu')"
    run_interpreted(code, tmp_path)
