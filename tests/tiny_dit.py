"""Tiny real DiTs for tests: built from a variant, or from a file of the golden vectors."""

from pathlib import Path

from safetensors.torch import load_file
import torch
from torch import Tensor

from common.features import FeatureBatch
from wan.modules.dit import WanDiT
from wan.variants import Variant


def tiny_variant(**changes: object) -> Variant:
    """Text-to-video, 32 wide, 4 blocks, 2 heads; `changes` replace fields."""
    fields: dict = {"dim": 32, "ffn_dim": 48, "layers": 4, "heads": 2, "in_channels": 16, "out_channels": 16,
                    "text_dim": 12, "freq_dim": 32}
    return Variant(**{**fields, **changes})


def tiny_dit(variant: Variant | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> WanDiT:
    """Frozen DiT with random weights."""
    torch.manual_seed(seed)
    return WanDiT(variant or tiny_variant()).to(dtype).eval().requires_grad_(False)


def tiny_inputs(batch: int = 2, *, frames: int = 3, seed: int = 1, variant: Variant | None = None
                ) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(latents `B 16 F 4 6`, timestep `B`, text of different lengths)."""
    variant = variant or tiny_variant()
    draws = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, variant.latent_channels, frames, 4, 6, generator=draws)
    timestep = torch.rand(batch, generator=draws) * 1000
    text = [torch.randn(3 + 2 * i, variant.text_dim, generator=draws) for i in range(batch)]
    return latents, timestep, text


def tiny_features(batch: int = 2, *, frames: int = 3, seed: int = 2) -> FeatureBatch:
    """Audio of 3 states, 4 wide, and the rows beside it, reference latents, a given first frame: for `tiny_inputs`."""
    draws = torch.Generator().manual_seed(seed)
    video_frames = 4 * (frames - 1) + 1
    mask = torch.zeros(batch, 1, frames, 4, 6)
    mask[:, :, 0] = 1
    return FeatureBatch(
        features={"audio": {"states": torch.randn(batch, video_frames, 3, 4, generator=draws),
                            "before": torch.randn(batch, 2, 3, 4, generator=draws),
                            "after": torch.randn(batch, 2, 3, 4, generator=draws)},
                  "reference_latents": {"latents": torch.randn(batch, 16, 1, 4, 6, generator=draws)}},
        frames=video_frames, fps=25.0,
        given_latents=torch.randn(batch, 16, frames, 4, 6, generator=draws), given_mask=mask)


def dit_from_file(path: Path) -> WanDiT:
    """Float32 DiT with the weights of a golden file (two heads), read without any of our loaders."""
    weights = load_file(path)
    has_image_branch = "img_emb.proj.1.weight" in weights
    variant = Variant(
        dim=weights["head.modulation"].shape[-1], ffn_dim=len(weights["blocks.0.ffn.0.bias"]),
        layers=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks.")), heads=2,
        in_channels=weights["patch_embedding.weight"].shape[1], out_channels=len(weights["head.head.bias"]) // 4,
        text_dim=weights["text_embedding.0.weight"].shape[1], has_image_branch=has_image_branch,
        image_dim=len(weights["img_emb.proj.0.bias"]) if has_image_branch else None,
        has_image_positions="img_emb.emb_pos" in weights)
    dit = WanDiT(variant)
    dit.load_state_dict({key: value.float() for key, value in weights.items()})
    return dit.eval().requires_grad_(False)
