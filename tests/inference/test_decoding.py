"""Frames as they are decoded: the numbers of the whole, each held once, and written while they come."""

from pathlib import Path

import numpy as np
import pytest
import torch

from inference.decoding import Decoding, decode_with, decoded_chunks
from inference.result import to_frames
from wan.encoders.vae import load_vae
from wan.memory.vae_speed import VaeSpeed, speed_up
from wan.modules.vae import Vae
from wan.modules.vae_layers import PastFrames


@pytest.fixture
def vae(tiny_weights: Path) -> Vae:
    return load_vae(tiny_weights / "Wan2.1_VAE.pth")


def latents(count: int) -> torch.Tensor:
    return torch.randn(16, count, 2, 3, generator=torch.Generator().manual_seed(3))


def test_chunks_come_one_after_the_other_and_are_the_whole_clip(vae: Vae) -> None:
    speed_up(vae, VaeSpeed(decode_latents=2, budget_bytes=1 << 40))
    given = latents(6)
    chunks = list(decoded_chunks(vae, given))
    assert [chunk.shape[1] for chunk in chunks] == [1, 8, 8, 4]
    assert torch.equal(torch.cat(chunks, dim=1), decode_with(vae, given))
    past = PastFrames()
    parts = [chunk for part in (given[:, :3], given[:, 3:]) for chunk in decoded_chunks(vae, part, past)]
    torch.testing.assert_close(torch.cat(parts, dim=1), decode_with(vae, given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shown", [None, 9, 10, 1])
def test_frames_come_while_the_rest_is_not_decoded_and_fill_the_video(vae: Vae, shown: int | None) -> None:
    whole = vae.decode(latents(4)[None])[0].detach()[:, :shown]
    decoding = Decoding(vae, latents(4), shown)
    frames = decoding.frames()
    first = next(frames)
    assert np.array_equal(first, to_frames(whole[:, :1])[0])
    if shown != 1:
        assert not torch.equal(decoding.video, whole), "the later frames are still to come"
    rest = list(frames)
    assert torch.equal(decoding.video, whole) and decoding.is_done
    assert np.array_equal(np.stack([first, *rest]), to_frames(whole))
    assert decoding.finish() is decoding.video


def test_a_video_that_nobody_took_is_decoded_at_the_end(vae: Vae) -> None:
    decoding = Decoding(vae, latents(3))
    assert torch.equal(decoding.finish(), vae.decode(latents(3)[None])[0].detach()) and not list(decoding.frames())
