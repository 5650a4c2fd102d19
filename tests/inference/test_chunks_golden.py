"""Whole runs of OmniAvatar's own script: three chunks with two passes, two chunks with three passes."""

from dataclasses import replace
import json
from pathlib import Path
from typing import Any

from PIL import Image
import pytest
from safetensors.torch import load_file
import soundfile
import torch
from torch import Tensor

from inference.chunks import make_chunks
from inference.inputs import Prepared
from inference.pipeline import Pipeline, load_pipeline
from inference.request import GenerationRequest
from inference.segments import Segment
from wan.variants import OMNIAVATAR_NEGATIVE_PROMPT

FEATURES = 2e-4
SEGMENT = 3e-4
WHOLE_RUN = 1e-3
"""The golden files' tolerances: the sound's features, one segment from its stored start, the whole run."""


def prepare(golden: Path, tiny_weights: Path, folder: Path, case: str) -> tuple[Pipeline, Prepared, dict[str, Tensor]]:
    """The case as a request of ours: OmniAvatar's own file, and the script's text embeddings."""
    settings = json.loads((golden / "omniavatar_loop.json").read_text(encoding="utf-8"))[case]
    io = {name.removeprefix(f"{case}."): tensor
          for name, tensor in load_file(golden / "omniavatar_loop_io.safetensors").items() if name.startswith(case)}
    Image.fromarray(io["image"].numpy()).save(folder / "face.png")
    soundfile.write(folder / "speech.wav", io["waveform"].numpy(), 16_000, subtype="FLOAT")
    height, width = settings["video"][3:]
    request = GenerationRequest(
        dit=golden / "omniavatar_base" / "diffusion_pytorch_model.safetensors", vae=golden / "wan21_vae_b.pth",
        t5=tiny_weights / "models_t5_umt5-xxl-enc-bf16.pth", wav2vec=golden / "omniavatar_wav2vec2",
        lora_weight=[golden / "omniavatar_exp" / "pytorch_model.pt"], device="cpu", prompt="x", seed=1,
        image_path=folder / "face.png", audio=folder / "speech.wav", audio_lead=0.0,
        infer_steps=settings["num_steps"], guidance_scale=settings["guidance_scale"],
        audio_scale=settings["audio_scale"], max_tokens=settings["max_tokens"],
        overlap_frame=settings["overlap_frame"], video_size=(height, width))
    pipeline = load_pipeline(request)
    prepared = pipeline.prepare(pipeline.plan(request))
    return pipeline, replace(prepared, text=io["context_pos"], negative_text=io["context_neg"]), io


def assert_shown_alike(chunk: Prepared, segment: Segment, io: dict[str, Tensor]) -> None:
    """Sound, mask and given latents of a chunk are the script's."""
    stored = {name.removeprefix(f"{segment.index}."): tensor for name, tensor in io.items()
              if name.startswith(f"{segment.index}.")}
    batch = chunk.batch
    states = batch.features["audio"]["states"]
    heard = torch.cat((states[:, :, -1:], states), dim=2).flatten(2)[0]
    assert batch.first_is_still is not None and batch.given_mask is not None and batch.given_latents is not None
    if batch.first_is_still:
        heard[0] = 0
    torch.testing.assert_close(heard, stored["audio"], atol=FEATURES, rtol=0)
    assert torch.equal(1 - batch.given_mask[0], stored["y"][16:])
    known = batch.given_latents[0][:, :stored["known_latents"].shape[1]]
    torch.testing.assert_close(known, stored["known_latents"], atol=WHOLE_RUN, rtol=0)
    reference = batch.features["reference_latents"]["latents"][0].expand_as(stored["y"][:16])
    torch.testing.assert_close(reference, stored["y"][:16], atol=SEGMENT, rtol=0)


@pytest.mark.parametrize("case", ["cfg2", "cfg3"])
def test_a_run_of_omniavatars_script_is_reproduced(golden, tiny_weights, tmp_path, case):
    pipeline, prepared, io = prepare(golden, tiny_weights, tmp_path, case)
    plan = prepared.plan
    assert (plan.sampling.solver, plan.sampling.shift, plan.fps, plan.picture_mode) == ("euler", 5.0, 25, "omniavatar")
    assert plan.request.omniavatar_lead and plan.sound_lead_s == 1 / 25, "the silence was put into the stored waveform"
    pieces = []

    def sample(chunk: Prepared, segment: Segment, **settings: Any) -> Tensor:
        assert_shown_alike(chunk, segment, io)
        return pipeline.sample(chunk, noise=io[f"{segment.index}.noise"][None], **settings)

    for chunk in make_chunks(prepared, pipeline.models.get("vae"), sample):
        torch.testing.assert_close(chunk.latents, io[f"{chunk.segment.index}.latents"], atol=WHOLE_RUN, rtol=0)
        pieces.append(chunk.frames)
    video = torch.cat(pieces, dim=1)
    assert video.shape[1] == len(io["video"])
    torch.testing.assert_close(video.transpose(0, 1) / 2 + 0.5, io["video"], atol=WHOLE_RUN, rtol=0)
    assert len(pieces) == {"cfg2": 3, "cfg3": 2}[case]


def test_a_single_segment_from_its_stored_start_is_met_closely(golden, tiny_weights, tmp_path):
    pipeline, prepared, io = prepare(golden, tiny_weights, tmp_path, "cfg2")
    segment = prepared.plan.segments[1]
    chunk = prepared.following(segment, io["1.known_latents"])
    steps: list[Tensor] = []
    latents = pipeline.sample(chunk, noise=io["1.noise"][None], watch=lambda step, sample: steps.append(sample))
    torch.testing.assert_close(torch.cat(steps), io["1.step_latents"], atol=SEGMENT, rtol=0)
    torch.testing.assert_close(latents, io["1.latents"], atol=SEGMENT, rtol=0)


def test_omniavatars_file_brings_its_sizes_sampler_and_timing(golden, tiny_weights, tmp_path):
    pipeline, prepared, _ = prepare(golden, tiny_weights, tmp_path, "cfg2")
    asked = prepared.plan.request
    names = ("dit", "vae", "t5", "wav2vec", "lora_weight", "image_path", "audio")
    kept = {name: getattr(asked, name) for name in names}
    plan = pipeline.plan(GenerationRequest(**kept, device="cpu", prompt="x"))
    assert plan.size == (720, 400) and [one.frames for one in plan.segments] == [105]
    assert (plan.sampling.solver, plan.sampling.steps, plan.sampling.shift) == ("euler", 50, 5.0)
    assert (plan.guidance, plan.fps, plan.picture_mode, plan.request.overlap_frame) == (4.5, 25, "omniavatar", 13)
    assert plan.timing.lead_s == 0.3 and plan.sound_lead_s == pytest.approx(0.34)
    assert plan.negative_prompt == OMNIAVATAR_NEGATIVE_PROMPT
    large = pipeline.plan(GenerationRequest(**kept, device="cpu", prompt="x", max_hw=1280))
    assert large.size == (1280, 720), "of the larger sizes the nearest to 3:2"
