"""What the small VAE keeps of pictures: PSNR, mouths, deviations of its latents.

    python -m tools.tiny.measure_vae WEIGHTS VIDEO… [--side 128] [--strip pairs.png]

prints the PSNR of files (their first 33 frames at 25 a second, the largest square, scaled) and, with `--strip`, writes
a few frames above their reconstructions.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import run
from evaluation.mouth import NoMouthError, mouth_opening
from evaluation.sync import sync_of
from tools.tiny.bank import Bank
from tools.tiny.vae_batches import as_video
import wan
from wan.modules.vae import Vae

FRAMES = 33
AT_ONCE = 8


@torch.no_grad()
def reconstruct(vae: Vae, pictures: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Pictures ``B N H W 3`` uint8 behind the VAE, and the normalised latents ``B 16 F h w``."""
    made, latents = [], []
    for part in torch.from_numpy(pictures).split(AT_ONCE):
        latents.append(vae.encode(as_video(part.to(vae.device))))
        video = vae.decode(latents[-1])
        made.append(((video + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu())
    return torch.cat(made).numpy(), torch.cat(latents)


def psnr_db(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean over frames of the PSNR of each clip ``B N H W 3``; ``B``."""
    error = np.square((one.astype(np.float32) - other.astype(np.float32)) / 255).mean((2, 3, 4))
    return -10 * np.log10(np.maximum(error, 1e-10)).mean(1)


def mouth_r(pictures: np.ndarray, opening: np.ndarray) -> float | None:
    """Correlation of the mouth seen in one clip ``N H W 3`` with the law; None where no mouth is found or it rests."""
    try:
        return sync_of(mouth_opening(pictures), opening).r
    except NoMouthError:
        return None


def mouths(pictures: np.ndarray, openings: np.ndarray) -> dict[str, float | int | None]:
    """Mean and least `mouth_r` over clips of one head, and how many had a mouth that could be measured."""
    found = [r for r in (mouth_r(clip, opening[:, 0]) for clip, opening in zip(pictures, openings, strict=True))
             if r is not None]
    if not found:
        return {"mouth_r": None, "least_mouth_r": None, "mouths": 0}
    return {"mouth_r": round(float(np.mean(found)), 3), "least_mouth_r": round(min(found), 3), "mouths": len(found)}


def measure(path: Path, bank: Bank, device: str) -> dict[str, Any]:
    """The numbers of a saved VAE over a bank of one-head clips, by the ordinary loader and coder."""
    vae = wan.load_vae(path, device=device)
    made, latents = reconstruct(vae, bank.pictures)
    each = psnr_db(made, bank.pictures)
    late = psnr_db(made[:, -25:], bank.pictures[:, -25:])
    seen = mouths(made, bank.openings)
    return {"unseen_psnr_db": round(float(each.mean()), 2), "unseen_least_psnr_db": round(float(each.min()), 2),
            "unseen_first_frame_psnr_db": round(float(psnr_db(made[:, :1], bank.pictures[:, :1]).mean()), 2),
            "unseen_last_second_psnr_db": round(float(late.mean()), 2), "unseen_clips": len(each),
            **{f"unseen_{name}": value for name, value in seen.items()},
            "rendered_mouth_r": mouths(bank.pictures, bank.openings)["mouth_r"],
            "latent_mean": round(latents.mean().item(), 3), "latent_deviation": round(latents.std().item(), 3),
            "latent_deviations": [round(v, 2) for v in latents.std((0, 2, 3, 4)).tolist()]}


def square(path: Path, side: int) -> np.ndarray:
    """The first FRAMES frames of a video at 25 a second, cut to a square and scaled: ``N side side 3`` uint8."""
    import cv2

    from common.media.video import read_frames

    frames = read_frames(path, fps=25)[:FRAMES]
    frames = frames[:(len(frames) - 1) // 4 * 4 + 1]
    height, width = frames.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return np.stack([cv2.resize(frame[top:top + edge, left:left + edge], (side, side), interpolation=cv2.INTER_AREA)
                     for frame in frames])


def main() -> int:
    """Measure real videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a VAE file, or the folder that holds it")
    parser.add_argument("videos", type=Path, nargs="+", help="videos to code and decode")
    parser.add_argument("--side", type=int, default=128, help="pixels of the square, a multiple of 8 (default 128)")
    parser.add_argument("--strip", type=Path, help="PNG to write: frames above their reconstructions")
    settings = parser.parse_args()
    import cv2

    torch.set_num_threads(os.cpu_count() or 1)
    vae = wan.load_vae(settings.weights)
    rows = []
    for path in settings.videos:
        pictures = square(path, settings.side)
        made, _ = reconstruct(vae, pictures[None])
        print(f"{path.name}: {psnr_db(made, pictures[None])[0]:.1f} dB over {len(pictures)} frames", flush=True)
        shown = [0, len(pictures) // 2, len(pictures) - 1]
        rows += [np.concatenate(list(pictures[shown]), 1), np.concatenate(list(made[0][shown]), 1)]
    if settings.strip:
        cv2.imwrite(str(settings.strip), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    return 0


if __name__ == "__main__":
    run(main)
