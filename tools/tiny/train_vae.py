"""Train the small VAE 2.1 on rendered talking heads; writes Wan2.1_VAE.pth in the official layout.

    python -m tools.tiny.train_vae OUT_DIR --speech speech.npz --minutes 9

A quarter of the clips are spoiled on purpose (other colours, two clips in one, random clouds), so that the VAE also
draws what is no talking head. Three quarters of the time go to quarters of the pictures, which cost less. The latents
of the result have mean 0 and deviation 1 in every channel after the published normalisation, as those of the release
have about: the affine map that is missing is folded into the encoder's last and the decoder's first layer.
"""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
import json
import math
from pathlib import Path
import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tools.tiny.bank import Bank, make_bank
from wan.modules.vae import LATENT_MEAN, LATENT_STD, Vae
from wan.modules.vae_coders import VaeShape
from wan.modules.vae_layers import PastFrames

WIDTH = 12
LATENT_NOISE = 0.1
"""Deviation of the noise on latents of deviation about 1: what a DiT makes is not exact either."""
SPOILED = 0.25
CROPPED = 0.75
"""Share of the time that is spent on quarters of the pictures."""


def pictures_at(bank: Tensor, clips: Tensor, start: int, frames: int) -> Tensor:
    """Clips ``B 3 frames H W`` in -1…1 of ``N F H W 3`` bytes."""
    return bank[clips, start:start + frames].permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def spoil(video: Tensor) -> Tensor:
    """The same number of clips with permuted colours, upside down, mixed with each other, under clouds."""
    size, device = len(video), video.device
    other = video.flip(0)[:, torch.randperm(3).tolist()].flip(-2)
    share = torch.rand(size, 1, 1, 1, 1, device=device)
    coarse = torch.randn(size, 3, *[int(2 ** (2 + 4 * torch.rand(())))] * 2, device=device)
    clouds = F.interpolate(coarse, video.shape[-2:], mode="bilinear")[:, :, None]
    return share * video + (1 - share) * other + torch.rand(size, 1, 1, 1, 1, device=device) * clouds


def random_quarter(video: Tensor) -> Tensor:
    """A window of half the height and width, the same in all clips."""
    height, width = (side // 2 for side in video.shape[-2:])
    top, left = (int(torch.randint(side + 1, ())) for side in (height, width))
    return video[..., top:top + height, left:left + width]


def batches(bank: Bank, size: int, frames: int, device: str) -> Iterator[Tensor]:
    """Endless random clips ``B 3 frames H W`` in -1…1, mirrored half the time, colours shifted a little."""
    rng = np.random.default_rng(1)
    pictures = torch.from_numpy(bank.pictures).to(device)
    spoiled = int(size * SPOILED)
    while True:
        clips = torch.from_numpy(rng.integers(0, len(pictures), size)).to(device)
        video = pictures_at(pictures, clips, int(rng.integers(0, pictures.shape[1] - frames + 1)), frames)
        flip = torch.rand(size, 1, 1, 1, 1, device=device) < 0.5
        video = torch.where(flip, video.flip(-1), video)
        gain = 1 + 0.15 * torch.randn(size, 3, 1, 1, 1, device=device)
        video = video * gain + 0.1 * torch.randn(size, 3, 1, 1, 1, device=device)
        if spoiled:
            video = torch.cat((spoil(video[:spoiled]), video[spoiled:]))
        yield video.clamp(-1, 1)


def encode_means(vae: Vae, video: Tensor) -> Tensor:
    """As `Vae.posterior_means`, in two chunks: what streams in fours gives the same in one piece, and faster."""
    past = PastFrames()
    chunks = (vae.conv1(vae.encoder(chunk, past), past) for chunk in (video[:, :, :1], video[:, :, 1:]))
    return torch.cat([chunk.chunk(2, dim=1)[0] for chunk in chunks], dim=2)


def decode_means(vae: Vae, means: Tensor) -> Tensor:
    """As `Vae.decode_means`, in two chunks."""
    past = PastFrames()
    return torch.cat([vae.decoder(vae.conv2(chunk, past), past) for chunk in (means[:, :, :1], means[:, :, 1:])], dim=2)


def loss_of(decoded: Tensor, video: Tensor, means: Tensor) -> Tensor:
    """Colours, edges in space and time, what moves weighted up; and a light pull of the latents to deviation 1."""
    difference = decoded - video
    weight = 1 + 4 * (video - video.mean(2, keepdim=True)).abs()
    edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    edges = edges + (difference.diff(dim=2).abs() * weight[:, :, 1:]).mean()
    pull = (means.square().mean() - 1).relu() + 0.01 * means.square().mean()
    return (weight * difference.abs()).mean() + 0.5 * edges + 8 * (weight * difference.square()).mean() + 0.01 * pull


def psnr(vae: Vae, bank: Bank, device: str, clips: int = 32) -> float:
    """Mean over clips of the PSNR in dB between pictures and their reconstruction."""
    values = []
    pictures = torch.from_numpy(bank.pictures[:clips])
    with torch.no_grad():
        for i in range(len(pictures)):
            video = pictures_at(pictures, torch.tensor([i]), 0, pictures.shape[1]).to(device)
            error = (vae.decode(vae.encode(video)) - video).square().mean().item() / 4
            values.append(-10 * math.log10(error))
    return float(np.mean(values))


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


def normalised(vae: Vae, means: Tensor) -> Tensor:
    """Means after the published normalisation."""
    centre, deviation = vae._statistics(means)
    return (means - centre) / deviation


def train(vae: Vae, clips: Iterator[Tensor], *, seconds: float, rate: float, half: bool) -> list[dict[str, float]]:
    """Train for `seconds`, the rate falling to zero with a cosine; returns the log."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    started, log = time.monotonic(), []
    for step, video in enumerate(clips, start=1):
        passed = time.monotonic() - started
        if passed >= seconds:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / 200) * (0.5 + 0.5 * math.cos(math.pi * passed / seconds))
        half_of_batch = slice(len(video) // 8, len(video) // 8 + len(video) // 2)  # as many of them spoiled
        video = random_quarter(video) if passed < CROPPED * seconds else video[half_of_batch]
        with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
            latents = normalised(vae, encode_means(vae, video).float())
            noisy = latents + LATENT_NOISE * torch.randn_like(latents)
            centre, deviation = vae._statistics(latents)
            decoded = decode_means(vae, noisy * deviation + centre).float()
        loss = loss_of(decoded, video, latents)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            plain = slice(len(video) // 2, None)
            error = F.mse_loss(decoded[plain].clamp(-1, 1), video[plain]).item() / 4
            log.append({"step": step, "seconds": round(passed, 1), "loss": round(loss.item(), 5),
                        "psnr_db": round(-10 * math.log10(error), 2), "side": video.shape[-1],
                        "latent_std": round(latents.std().item(), 3)})
            if step % 200 == 0:
                print(log[-1], flush=True)
    return log


def main() -> None:
    """Train, measure on faces that training never saw, fold, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", type=Path, required=True, help="file of tools.tiny.speech")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--frames", type=int, default=65, help="4n+1 frames of a training clip; the "
                        "colours of much longer ones drift")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--start", type=Path, help="a Wan2.1_VAE.pth to continue from")
    parser.add_argument("--half", action="store_true", help="compute in bfloat16 (CUDA)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    longest = max(33, arguments.frames)
    seen, unseen = (make_bank(arguments.speech, clips=n, frames=longest, size=128, seed=s)
                    for n, s in ((arguments.clips, 0), (64, 1)))
    print(f"rendered in {time.monotonic() - started:.0f} s", flush=True)
    vae = Vae(VaeShape(width=WIDTH))
    if arguments.start:
        vae.load_state_dict(torch.load(arguments.start, weights_only=True))
    vae = vae.to(device, torch.float32).train()
    log = train(vae, batches(seen, arguments.batch, arguments.frames, device), seconds=arguments.minutes * 60,
                rate=arguments.rate, half=arguments.half)
    vae.eval()
    with torch.no_grad():
        some = pictures_at(torch.from_numpy(seen.pictures), torch.arange(min(64, len(seen.pictures))), 0,
                           longest)
        fold_statistics(vae, torch.cat([encode_means(vae, clip[None].to(device)) for clip in some]))
    vae = vae.to(torch.bfloat16).float()
    summary = {"unseen_psnr_db": round(psnr(vae, unseen, device), 2), "steps": log[-1]["step"] if log else 0,
               "seconds": round(time.monotonic() - started, 1), "width": WIDTH, "frames": arguments.frames,
               "batch": arguments.batch, "clips": arguments.clips,
               "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    print(summary, flush=True)
    torch.save({key: tensor.to("cpu", torch.bfloat16) for key, tensor in vae.state_dict().items()},
               arguments.out / "Wan2.1_VAE.pth")
    (arguments.out / "train_vae.json").write_text(json.dumps({"summary": summary, "log": log}, indent=1))


if __name__ == "__main__":
    main()
