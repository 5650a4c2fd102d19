"""What the clips of a proof could be at best: as the renderer draws them, and what the VAE leaves of that."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import UInt8
import numpy as np

from tools.proof.inputs import Item
from tools.proof.recipe import FRAMES, SIZE

Clips = Mapping[str, UInt8[np.ndarray, "N H W 3"]]
"""Item's name → frames."""


def render(item: Item) -> UInt8[np.ndarray, "N H W 3"]:
    """The item's face (its name ends in the renderer's seed) with the mouth that follows the item's sound by law."""
    from common.media.sound import mono16k, read_sound
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from tools.heads.clip import render_clip
    from tools.heads.laws import mouth_curves
    from tools.heads.scene import draw_scene

    mouth = mouth_curves(mono16k(read_sound(item.audio)), AUDIO_SAMPLE_RATE_HZ, FRAMES)
    seed = int(item.face.removeprefix("face_"))
    return render_clip(draw_scene(seed), [mouth], size=SIZE, frames=FRAMES).pictures


def reconstruct(clips: Clips, vae_file: Path) -> Clips:
    """Each clip through the VAE and back, on the GPU where there is one."""
    import torch

    from common.devices import pick_device
    from common.media.picture import to_minus_one_one
    from inference.result import to_frames
    import wan

    device = pick_device(None)
    vae = wan.load_vae(vae_file, device=device)
    with torch.no_grad():
        return {name: to_frames(vae.decode(vae.encode(to_minus_one_one(frames)[None].to(device)))[0])
                for name, frames in clips.items()}


def read_clips(videos: Mapping[str, Path]) -> Clips:
    """The frames of generated videos."""
    from common.media.video import read_frames
    from tools.proof.recipe import FPS

    return {name: read_frames(path, fps=FPS) for name, path in videos.items()}
