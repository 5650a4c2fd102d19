"""Train the small VAE 2.1 on rendered talking heads; writes Wan2.1_VAE.pth in the official layout.

    python -m tools.tiny.train_vae OUT_DIR --speech speech.npz
    python -m tools.tiny.train_vae OUT_DIR --speech speech.npz --decoder_of FOLDER --rate 1e-3 --steps 2600

The second trains only the decoder of a VAE further, on whole clips: its latents, and so a DiT's, stay as they are.

Most steps see quarters of the pictures for 33 frames, the last ones whole clips of 81 frames: colours drift in clips
much longer than a VAE was trained on. A quarter of the clips is spoiled on purpose (other colours, clips mixed, four in
one, clouds), so that the VAE also draws what is no talking head. Errors in the mouths' boxes weigh more. The latents
of the result have mean 0 and deviation 1 in every channel after the published normalisation, as those of the release
have about: the affine map that is missing is folded into the encoder's last and the decoder's first layer.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
import math
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
import time

import numpy as np
import torch
from torch import Tensor

from common.errors import run
from tools.tiny.bank import Bank
from tools.tiny.banks import add_bank_flags, bank_of
from tools.tiny.fast_convs import decode_means, encode_means, use_picture_convs
from tools.tiny.training import Course, Masters, add_training_flags, allow_tf32, start, write_record
from tools.tiny.vae_batches import SPOILED, Batch, Batches, as_video
from tools.tiny.write import VAE_FILE, save_pth
import wan
from wan.modules.vae import LATENT_MEAN, LATENT_STD, Vae
from wan.modules.vae_coders import VaeShape

WIDTH = 12
LATENT_NOISE = 0.07
"""Deviation of the noise on latents of deviation about 1: what a DiT makes is not exact either."""
MOUTH_WEIGHT = 5.0
"""Added to the weight of 1 inside the mouths' boxes."""
MOTION_WEIGHT = 4.0
"""Weight of what differs by 1 from its mean over the clip."""
FIRST_WEIGHT = 8.0
"""Weight of a clip's first frame, which has a latent of its own: one of 81 frames, and the picture that a clip starts
from. Without it the first frames came out at 26.9 dB, all together at 32.1."""
SHORT = 33
"""Frames of the quarters."""
QUARTERS = 0.75
"""Share of the steps that see quarters of the pictures; the others see whole ones, a quarter as many clips."""
UNSEEN = 48
"""Clips of the measurement."""

Pass = Callable[[Batch, Tensor], tuple[Tensor, Tensor, Tensor]]


def loss_of(decoded: Tensor, batch: Batch, latents: Tensor) -> Tensor:
    """Colours, edges in space and time, mouths and what moves weighted up; a light pull of latents to deviation 1."""
    video = batch.video
    difference = decoded - video
    weight = 1 + MOTION_WEIGHT * (video - video.mean(2, keepdim=True)).abs() + MOUTH_WEIGHT * batch.mouth
    weight = torch.cat((FIRST_WEIGHT * weight[:, :, :1], weight[:, :, 1:]), 2)
    edges = (difference.diff(dim=-1).abs() * weight[..., 1:]).mean()
    edges = edges + (difference.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
    edges = edges + (difference.diff(dim=2).abs() * weight[:, :, 1:]).mean()
    pull = (latents.square().mean() - 1).relu() + 0.01 * latents.square().mean()
    colours = (weight * (difference.abs() + 12 * difference.square())).mean()
    return colours + 0.4 * edges + 0.01 * pull


def make_pass(vae: Vae, device: str) -> Pass:
    """(batch, noise for the latents) → loss, mean squared error of the clips that are not spoiled, latents' deviation.

    On a GPU in bfloat16, compiled once for each size of clips.
    """
    on_gpu = device == "cuda"
    centre, deviation = vae._statistics(torch.zeros((), device=device))

    def forward(video: Tensor, mouth: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            latents = (encode_means(vae, video).float() - centre) / deviation
            decoded = decode_means(vae, (latents + LATENT_NOISE * noise) * deviation + centre).float()
        plain = slice(int(len(video) * SPOILED), None)
        error = (decoded[plain].detach().clamp(-1, 1) - video[plain]).square().mean() / 4
        return loss_of(decoded, Batch(video, mouth), latents), error, latents.detach().std()

    use_picture_convs(vae, on_gpu)
    made = torch.compile(forward, dynamic=False) if on_gpu else forward
    return lambda batch, noise: made(batch.video, batch.mouth, noise)


def sizes_of(size: int, frames: int, side: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Clips, frames and side of a batch of quarters, and of one of whole clips."""
    return (size, min(SHORT, frames), side // 2), (max(1, size // 4), frames, side)


def latent_shape(video: Tensor) -> tuple[int, ...]:
    """``B 16 F h w`` of a video ``B 3 N H W``."""
    return (len(video), 16, (video.shape[2] + 3) // 4, *(n // 8 for n in video.shape[3:]))


def try_pass(vae: Vae, forward: Pass, batches: Batches, size: tuple[int, int, int]) -> None:
    """Run one batch there and back, so that the pass is compiled for its size; nothing is learnt."""
    batch = batches.draw(*size)
    forward(batch, torch.zeros(latent_shape(batch.video), device=batches.device))[0].backward()
    for parameter in vae.parameters():
        parameter.grad = None


def freeze_encoder(vae: Vae) -> None:
    """Let only the decoder learn."""
    for part in (vae.encoder, vae.conv1):
        part.requires_grad_(False)


def compile_whole(width: int, size: int, frames: int, side: int, is_frozen: bool) -> None:
    """Compile the pass for whole clips into torch's cache on disk: in a process of its own, beside the quarters' pass.

    What is compiled depends on the sizes, not on pictures or weights.
    """
    bank = Bank(np.zeros((1, frames, side, side, 3), np.uint8), [""], np.zeros((1, frames, 1)),
                np.zeros((1, frames, 1, 4), np.uint16))
    allow_tf32()
    vae = Vae(VaeShape(width=width)).to("cuda").train()
    if is_frozen:
        freeze_encoder(vae)
    try_pass(vae, make_pass(vae, "cuda"), Batches(bank, "cuda", 0), sizes_of(size, frames, side)[1])
    print("compiled ahead for whole clips", flush=True)


def train(vae: Vae, batches: Batches, course: Course, size: int, *, share: float = QUARTERS,
          ahead: BaseProcess | None = None) -> None:
    """Train along `course` with `size` clips a step; the model ends with the running mean of its weights.

    The first `share` of the course sees quarters, the rest whole clips. On a GPU the pass is compiled for both sizes
    before the course begins; `ahead` has done most of the second.
    """
    device = batches.device
    forward, masters = make_pass(vae, device), Masters(vae, decay=1e-3)
    random = torch.Generator(device).manual_seed(1)
    quarters, whole = sizes_of(size, batches.pictures.shape[1], batches.pictures.shape[2])
    if device == "cuda":
        if share > 0:
            try_pass(vae, forward, batches, quarters)
        if ahead is not None:
            ahead.join()
        try_pass(vae, forward, batches, whole)
    for _ in course:
        batch = batches.draw(*(quarters if course.progress < share else whole))
        noise = torch.randn(latent_shape(batch.video), generator=random, device=device)
        loss, error, deviation = forward(batch, noise)
        loss.backward()
        masters.step(course.rate)
        if course.is_logged:
            course.note(loss=loss.item(), psnr_db=decibels(error.item()), side=batch.video.shape[-1],
                        latent_deviation=deviation.item())
    masters.use_mean()
    use_picture_convs(vae, False)


def decibels(error: float) -> float:
    """PSNR of a mean squared error of pictures in 0…1."""
    return -10 * math.log10(max(error, 1e-10))


def fold_statistics(vae: Vae, means: Tensor) -> None:
    """Give normalised latents (these are `means` ``B 16 F H W``) mean 0 and deviation 1; decoded, nothing changes."""
    centre, spread = means.mean((0, 2, 3, 4)), means.std((0, 2, 3, 4))
    wanted = torch.tensor(LATENT_STD, device=means.device)
    scale = wanted / spread
    shift = torch.tensor(LATENT_MEAN, device=means.device) - centre * scale
    with torch.no_grad():
        last, first = vae.conv1, vae.conv2
        assert last.bias is not None and first.bias is not None
        last.weight[:16] *= scale[:, None, None, None, None]
        last.bias[:16] = last.bias[:16] * scale + shift
        first.bias -= (first.weight[:, :, 0, 0, 0] @ (shift / scale))
        first.weight /= scale[None, :, None, None, None]


@torch.no_grad()
def means_of(vae: Vae, bank: Bank, device: str, clips: int = 64) -> Tensor:
    """Latent means, not normalised, of a bank's first clips."""
    parts = torch.from_numpy(bank.pictures[:clips]).split(8)
    return torch.cat([encode_means(vae, as_video(part.to(device))) for part in parts])


def fresh_or_further(settings: argparse.Namespace) -> Vae:
    """A VAE with random weights, or the one of `--decoder_of` with a frozen encoder; float32 on the CPU."""
    if settings.decoder_of is None:
        return Vae(VaeShape(width=settings.width)).train()
    vae = wan.load_vae(settings.decoder_of).float().train().requires_grad_()
    freeze_encoder(vae)
    return vae


def main() -> int:
    """Train, fold, save, and measure what was saved on scenes that training never saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write Wan2.1_VAE.pth and train_vae.json to")
    add_bank_flags(parser, clips=1600)
    add_training_flags(parser, steps=4700, minutes=15, rate=2e-3, batch=16)
    parser.add_argument("--width", type=int, default=WIDTH, help=f"channels of the finest stage (default {WIDTH})")
    parser.add_argument("--decoder_of", type=Path, help="VAE file, or its folder: train only its decoder further, on "
                        "whole clips")
    settings = parser.parse_args()
    device = start(settings)
    started = time.monotonic()
    further, ahead = settings.decoder_of is not None, None
    vae = fresh_or_further(settings)
    if device == "cuda" and not settings.render_only:
        ahead = get_context("spawn").Process(target=compile_whole, args=(
            vae.shape.width, settings.batch, settings.frames, settings.size, further))
        ahead.start()
    seen = bank_of(settings, clips=settings.clips, seed=0)
    unseen = bank_of(settings, clips=min(UNSEEN, settings.clips), seed=1)
    if settings.render_only:
        return 0
    rendered = time.monotonic()
    print(f"rendered in {rendered - started:.0f} s", flush=True)
    vae = vae.to(device)
    course = Course(settings)
    train(vae, Batches(seen, device, settings.seed), course, settings.batch, share=0.0 if further else QUARTERS,
          ahead=ahead)
    vae.eval()
    if not further:
        fold_statistics(vae, means_of(vae, seen, device))
    trained = time.monotonic()
    save_pth(settings.out / VAE_FILE, {key: t.to("cpu", torch.bfloat16) for key, t in vae.state_dict().items()})

    from tools.tiny.measure_vae import measure

    summary = {"seconds_of_rendering": round(rendered - started, 1),
               "seconds_of_training": round(trained - rendered, 1)}
    record = "train_vae_decoder.json" if further else "train_vae.json"
    write_record(settings.out / record, settings, course,
                 summary | measure(settings.out / VAE_FILE, unseen, device))
    return 0


if __name__ == "__main__":
    run(main)
