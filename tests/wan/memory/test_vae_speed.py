"""A faster VAE computes what the plain one does: over chunk sizes, layouts, compiled graphs and batches."""

from collections.abc import Iterator
import logging

import pytest
import torch
from torch import Tensor

from tests.light_set import light_input, light_state
from wan.memory.vae_speed import (
    MAX_ELEMENTS,
    CompiledChunk,
    VaeSpeed,
    fitting_latents,
    layers_with_past,
    slow_down,
    speed_up,
    usual_speed,
)
from wan.modules.vae import Vae, cut_into_chunks
from wan.modules.vae_coders import VaeShape
from wan.modules.vae_layers import PastFrames

NARROW = VaeShape(width=8)
SMALL = VaeShape(width=8, multipliers=(1, 2), residual_blocks=1, halves_time=(True,))
PLENTY = 1 << 40


def made(dtype: torch.dtype, shape: VaeShape = NARROW) -> Vae:
    model = Vae(shape).requires_grad_(False)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    model.load_state_dict(light_state("vae", shapes, 0.2))
    return model.to(dtype)


def both_ways(vae: Vae, video: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    return vae.encode(video), vae.decode(latents)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_any_chunks_give_the_numbers_of_single_latent_frames(dtype: torch.dtype, tolerance: float) -> None:
    vae = made(dtype)
    video = light_input("speed", (1, 3, 29, 16, 24)).to(dtype)
    plain = both_ways(vae, video, latents := vae.encode(video))
    for encode_latents, decode_latents in ((2, 3), (4, 5), (7, 7)):
        for channels_last in (False, True):
            speed_up(vae, VaeSpeed(encode_latents, decode_latents, channels_last, budget_bytes=PLENTY))
            for found, expected in zip(both_ways(vae, video, latents), plain, strict=True):
                assert found.dtype == expected.dtype and (found - expected).abs().max() < tolerance
    slow_down(vae)
    assert [part.shape[2] for part in vae.posterior_means(video)] == [1] * 8


@pytest.mark.parametrize("first", [17, 29])
def test_a_first_chunk_may_hold_more_than_the_first_frame(first: int) -> None:
    """The first chunk of 1+4n frames, whole clip included, against one latent frame at a time; float64."""
    vae = made(torch.float64)
    video = light_input("first", (1, 3, 29, 16, 16)).double()
    past = PastFrames()
    parts = [vae.encode_chunk(part, past) for part in (video[:, :, :first], video[:, :, first:]) if part.shape[2]]
    means = torch.cat(list(vae.posterior_means(video)), dim=2)
    torch.testing.assert_close(torch.cat(parts, dim=2), means, atol=1e-10, rtol=0)
    past, cut = PastFrames(), (first + 3) // 4
    frames = [vae.decode_chunk(part, past) for part in (means[:, :, :cut], means[:, :, cut:]) if part.shape[2]]
    expected = torch.cat(list(vae.decode_means(means)), dim=2)
    torch.testing.assert_close(torch.cat(frames, dim=2), expected, atol=1e-10, rtol=0)


def test_chunks_are_few_and_about_equal() -> None:
    def lengths(count: int, most: int, *, is_begun: bool = False) -> list[int]:
        return [len(part) for part in cut_into_chunks(count, most, is_begun=is_begun)]

    assert lengths(21, 4) == [1, 4, 4, 4, 4, 4]
    assert lengths(21, 5, is_begun=True) == [5, 5, 5, 5, 1]
    assert lengths(7, 4) == [1, 3, 3]
    assert lengths(1, 4) == [1]
    assert lengths(5, 1) == [1] * 5
    for count in range(1, 30):
        assert [index for part in cut_into_chunks(count, 4) for index in part] == list(range(count))


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """Compiled graphs do not outlive a test."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_chunk_is_one_graph_for_first_and_one_for_later_chunks(no_compiler: None) -> None:
    """Without a break, and without a recompilation for the second chunk; numbers equal in float64."""
    vae = speed_up(made(torch.float64, SMALL), VaeSpeed(2, 2, channels_last=True, budget_bytes=PLENTY))
    video = light_input("graph", (1, 3, 13, 8, 8)).double()
    plain = both_ways(vae, video, latents := vae.encode(video))
    for name, coder in (("encode_chunk", vae.encoder), ("decode_chunk", vae.decoder)):
        setattr(vae, name, CompiledChunk(getattr(vae, name), layers_with_past(coder), backend="eager",
                                         memory_format=torch.channels_last_3d))
    for found, expected in zip(both_ways(vae, video, latents), plain, strict=True):
        assert (found - expected).abs().max() < 1e-10
    assert video.shape[2] == 13 and torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    assert not torch._dynamo.utils.counters["graph_break"]


def test_what_does_not_compile_runs_as_it_is_and_says_why(no_compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    vae = made(torch.float32, SMALL)
    video = light_input("fallback", (1, 3, 3, 8, 8))
    expected = vae.encode(video)

    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler on this machine")

    vae.encode_chunk = CompiledChunk(  # type: ignore[method-assign]
        vae.encode_chunk, layers_with_past(vae.encoder), memory_format=torch.contiguous_format,
        backend=broken)  # type: ignore[arg-type]
    with caplog.at_level("WARNING"):
        assert torch.equal(vae.encode(video), expected)
    assert caplog.text.count("could not be compiled") == 1 and "no compiler on this machine" in caplog.text


def test_memory_and_the_reach_of_the_kernels_bound_a_call() -> None:
    shape, pixels = VaeShape(), 480 * 832

    def fitting(pixels: int, budget_gib: float, wanted: int = 5) -> int:
        return fitting_latents(wanted, pixels, shape=shape, itemsize=2, budget_bytes=int(budget_gib * 2**30))

    assert fitting(pixels, 70) == 5
    assert fitting(pixels, 4) == 2, "two latent frames are eight frames of 0.41 GB"
    assert fitting(pixels, 0.1) == 1
    for clips in (1, 2):
        frames = 4 * fitting(clips * 720 * 1280, 10_000, wanted=100)
        assert 2 * shape.width * clips * 720 * 1280 * (frames + 2) <= MAX_ELEMENTS


def test_usual_speed_is_the_plain_path_off_cuda(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert usual_speed("cpu", torch.bfloat16, compiled=True) == VaeSpeed(1, 1)
    assert "not compiled" in caplog.text
    assert usual_speed("cuda", torch.bfloat16) == VaeSpeed(channels_last=True, fused=True)
    assert usual_speed("cuda", torch.bfloat16, many=True) == VaeSpeed(channels_last=True, fused=True, tuned=True)
    assert usual_speed("cuda", torch.bfloat16, compiled=True) == VaeSpeed(channels_last=True, tuned=True, compiled=True)
    assert usual_speed("cuda:1", torch.float32, many=True) == VaeSpeed(tuned=True)


def test_many_clips_in_half_precision_may_be_compiled_for_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan.memory.vae_speed.COMPILES_MANY", True)
    compiled = VaeSpeed(channels_last=True, tuned=True, compiled=True)
    assert usual_speed("cuda", torch.bfloat16, many=True) == compiled
    assert usual_speed("cuda", torch.bfloat16) == VaeSpeed(channels_last=True, fused=True)
    assert usual_speed("cuda", torch.float32, many=True) == VaeSpeed(tuned=True)
    assert usual_speed("cpu", torch.bfloat16, many=True) == VaeSpeed(1, 1)


@pytest.mark.parametrize("before", [False, True])
def test_kernels_are_tried_during_a_call_only(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own setting comes back, also where the call fails."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    vae, seen = speed_up(made(torch.float32, SMALL), VaeSpeed(tuned=True)), []
    assert torch.backends.cudnn.benchmark is before
    vae.conv1.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    vae.encode(light_input("tuned", (1, 3, 1, 8, 8)))
    assert seen == [True] and torch.backends.cudnn.benchmark is before
    with pytest.raises(RuntimeError):
        vae.encode_chunk(torch.zeros(1, 5, 1, 8, 8), PastFrames())
    assert torch.backends.cudnn.benchmark is before


def test_levels_are_spread_as_the_whole_clip_would_be() -> None:
    vae = made(torch.float32, SMALL)
    levels = torch.randint(0, 256, (1, 5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    levels = levels.permute(0, 4, 1, 2, 3)
    assert torch.equal(vae.encode(levels), vae.encode((levels.float() / 127.5 - 1).contiguous()))


def test_bfloat16_is_near_float32_by_psnr() -> None:
    vae, half = made(torch.float32), made(torch.bfloat16)
    latents = vae.encode(light_input("psnr", (1, 3, 9, 16, 16)))
    speed_up(half, VaeSpeed(channels_last=True, budget_bytes=PLENTY))
    error = (half.decode(latents) - vae.decode(latents)).square().mean()
    assert 10 * torch.log10(4 / error) > 35
