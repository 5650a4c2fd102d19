"""The original image-to-video pipeline, step by step, through the pieces of ours."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch

from common.features import FeatureBatch
from common.media.item import Media
from common.media.picture import exact_frames
from inference.denoise import Sampling, denoise
from inference.forward import ClipVelocity
from inference.guidance import ClassifierFree
from inference.inputs import Prepared
from inference.pipeline import decode_with
from inference.sizes import clip_size
import wan
from wan.encoders.features.clip import ClipEncoder
from wan.encoders.features.image_latents import ImageLatentsEncoder

RUNS = [("unipc", 4), ("unipc", 8), ("dpm++", 4)]


@pytest.fixture(scope="module")
def io(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "pipe_i2v_io.safetensors")


@pytest.fixture(scope="module")
def settings(golden: Path) -> dict:
    return json.loads((golden / "pipe_i2v.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def vae(golden: Path):
    return wan.load_vae(golden / "wan21_vae_b.pth")


def picture_size(io, settings) -> tuple[int, int]:
    height, width = io["image"].shape[:2]
    # The size is asked as an area; any two sides of that area say the same.
    return clip_size(settings["max_area"] // 64, 64, "wan_i2v", (height, width))


def test_size_is_the_pictures_shape_at_the_area(io, settings):
    assert picture_size(io, settings) == (settings["video"][3], settings["video"][2])


def test_mask_and_image_latents_equal_the_original(io, settings, vae, golden):
    frames = exact_frames(io["image"].numpy(), picture_size(io, settings), "wan_i2v")
    encoder = ImageLatentsEncoder(vae, golden / "wan21_vae_b.pth", picture_mode="wan_i2v")
    channels = encoder.encode(Media(n_frames=settings["frame_num"], fps=16, frames=frames))["latents"]
    torch.testing.assert_close(channels, io["y"], atol=5e-5, rtol=0)
    assert torch.equal(channels[:4], io["mask"])


def test_clip_features_equal_the_original(io, settings, golden):
    path = golden / "pipe_clip.pth"
    encoder = ClipEncoder(wan.load_image_encoder(path, heads=settings["clip"]["vision_heads"]), path)
    features = encoder.encode(Media(n_frames=1, fps=16, frames=io["image"].numpy()[None]))["first"]
    torch.testing.assert_close(features, io["clip"][0], atol=1e-4, rtol=0)


def test_text_equals_the_original(io, golden):
    encoder = wan.load_text_encoder(golden / "umt5_encoder.pth")
    for name, hidden in zip(("pos", "neg"), encoder.encode_ids([io["ids_pos"], io["ids_neg"]]), strict=True):
        torch.testing.assert_close(hidden, io[f"context_{name}"], atol=1.5e-4, rtol=0)


@pytest.mark.parametrize(("solver", "steps"), RUNS)
def test_every_step_and_the_video_equal_the_original(io, settings, vae, golden, solver, steps):
    dit = wan.load_dit(golden / "pipe_i2v_dit.safetensors", head_dim=64)
    batch = FeatureBatch(features={"image_latents": {"latents": io["y"][None]}, "clip": {"first": io["clip"]}},
                         frames=settings["frame_num"], fps=16)
    prepared = Prepared(None, io["context_pos"], io["context_neg"], batch)  # type: ignore[arg-type]
    guidance = ClassifierFree(settings["guidance"])
    noise = io["noise"][None]
    velocities = {"conditional": [], "unconditional": []}
    samples = []
    with torch.no_grad():
        clip = ClipVelocity(dit, {}, prepared, guidance, noise)

        def velocity(x, sigma, timestep, one):
            velocities[one.name].append(clip(x, sigma, timestep, one))
            return velocities[one.name][-1]

        latents = denoise(velocity, noise, Sampling(solver, steps, settings["shift"]), guidance=guidance,
                          write_given=clip.write_given, watch=lambda step, sample: samples.append(sample))
    run = f"{solver}.{steps}"
    for name, key in (("conditional", "velocity_pos"), ("unconditional", "velocity_neg")):
        torch.testing.assert_close(torch.cat(velocities[name]), io[f"{run}.{key}"], atol=2e-4, rtol=0)
    torch.testing.assert_close(torch.cat(samples), io[f"{run}.step_latents"], atol=2e-4, rtol=0)
    assert torch.equal(latents, samples[-1])
    torch.testing.assert_close(decode_with(vae, latents[0]), io[f"{run}.video"], atol=2e-4, rtol=0)
