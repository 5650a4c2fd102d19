"""The audio condition against OmniAvatar's own DiT (its fp32 velocity, audio tokens and residuals)."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch
from torch import Tensor

from common.features import FeatureBatch
from tests.tiny_dit import dit_from_file
from wan.conditions.given_frames import GivenFrames
from wan.conditions.omniavatar_add import OmniAvatarAdd, OmniAvatarSettings, join_patch_embedding, split_patch_embedding
from wan.modules.dit import WanDiT

TOLERANCE = 5e-5
LORA_SCALE = 4 / 8
CONDITION_PARTS = ("audio_proj.", "audio_cond_projs.")


@pytest.fixture(scope="module")
def weights(golden: Path) -> dict[str, Tensor]:
    return torch.load(golden / "omniavatar_exp" / "pytorch_model.pt", weights_only=True)


def _base(golden: Path) -> WanDiT:
    return dit_from_file(golden / "omniavatar_base" / "diffusion_pytorch_model.safetensors")


def _with_lora(dit: WanDiT, weights: dict[str, Tensor]) -> WanDiT:
    for key, down in weights.items():
        if key.endswith("lora_A.default.weight"):
            up = weights[key.replace("lora_A", "lora_B")]
            module = dit.get_submodule(key.removesuffix(".lora_A.default.weight"))
            module.weight += LORA_SCALE * up.float() @ down.float()
    return dit


def _condition(dit: WanDiT, weights: dict[str, Tensor]) -> OmniAvatarAdd:
    condition = OmniAvatarAdd(OmniAvatarSettings(audio_states=3, audio_width=16), dit.variant)
    base = dit.patch_embedding
    split = split_patch_embedding(weights["patch_embedding.weight"], base.weight)
    state = {key: value.float() for key, value in weights.items() if key.startswith(CONDITION_PARTS)}
    state["patch_embedding.weight"] = torch.cat(split, dim=1)
    state["patch_embedding.bias"] = weights["patch_embedding.bias"].float() - base.bias
    condition.load_state_dict(state)  # strict: every key of the file has its place, and none is left
    return condition.requires_grad_(False)


def _cases(golden: Path) -> list[dict[str, Tensor]]:
    stored = load_file(golden / "omniavatar_dit_io.safetensors")
    return [{name[2:]: value for name, value in stored.items() if name.startswith(f"{case}.")} for case in range(3)]


def _velocity(dit: WanDiT, condition: OmniAvatarAdd, io: dict[str, Tensor], audio: Tensor) -> Tensor:
    reference, mask = io["y"][:, :16, :1], io["y"][:, 16:]
    state = condition.state(audio, reference, GivenFrames(torch.zeros_like(io["x"]), 1 - mask))
    return dit(io["x"], io["timestep"], io["context"], conditions={"omniavatar_add": state})


def test_velocity_equals_omniavatars(golden: Path, weights: dict[str, Tensor]) -> None:
    base = _base(golden)
    condition = _condition(base, weights)
    dit = _with_lora(_base(golden), weights)
    for io in _cases(golden):
        silence = torch.zeros_like(io["audio_emb"])
        for found, name in ((_velocity(dit, condition, io, io["audio_emb"]), "velocity"),
                            (_velocity(dit, condition, io, silence), "velocity_zero_audio"),
                            (_velocity(base, condition, io, io["audio_emb"]), "velocity_lora_off")):
            torch.testing.assert_close(found, io[name], atol=TOLERANCE, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_audio_tokens_and_residuals_equal_omniavatars(golden: Path, weights: dict[str, Tensor]) -> None:
    condition = _condition(_base(golden), weights)
    for io in _cases(golden):
        tokens = condition.audio_proj(io["audio_emb"])
        torch.testing.assert_close(tokens[0], io["audio_tokens"], atol=TOLERANCE, rtol=0)
        residuals = condition.state(io["audio_emb"], io["y"][:, :16, :1], None).residuals
        torch.testing.assert_close(residuals[0], io["audio_residuals"], atol=TOLERANCE, rtol=0)


def test_absent_audio_is_the_originals_zero_audio(golden: Path, weights: dict[str, Tensor]) -> None:
    dit = _with_lora(_base(golden), weights)
    condition = _condition(_base(golden), weights)
    io = _cases(golden)[1]
    frames = io["audio_emb"].shape[1]
    batch = FeatureBatch(
        features={"audio": {"states": torch.randn(1, frames, 3, 16)},
                  "reference_latents": {"latents": io["y"][:, :16, :1]}},
        frames=frames, fps=25.0, given_latents=torch.zeros_like(io["x"]), given_mask=1 - io["y"][:, 16:],
        present={"audio": torch.tensor([False])})
    state = condition.prepare(batch, (4, 3, 4))
    velocity = dit(io["x"], io["timestep"], io["context"], conditions={"c": state})
    torch.testing.assert_close(velocity, io["velocity_zero_audio"], atol=TOLERANCE, rtol=0)


def test_a_split_patch_embedding_is_rejoined_bit_for_bit(golden: Path, weights: dict[str, Tensor]) -> None:
    base = _base(golden)
    condition = _condition(base, weights)
    whole = join_patch_embedding(condition.patch_embedding.weight, base.patch_embedding.weight)
    assert torch.equal(whole.bfloat16(), weights["patch_embedding.weight"])
