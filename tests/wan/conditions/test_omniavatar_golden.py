"""The audio condition against OmniAvatar's own DiT (its fp32 velocity, audio tokens and residuals)."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch
from torch import Tensor

from common.features import FeatureBatch
from networks.condition_weights import load_conditions, recorded_conditions
from networks.formats import read_lora
from networks.published import with_base
from tests.tiny_dit import dit_from_file
from wan.conditions.given_frames import GivenFrames
from wan.conditions.omniavatar_add import OmniAvatarAdd
from wan.conditions.registry import build_condition
from wan.modules.dit import WanDiT

TOLERANCE = 5e-5
LORA_SCALE = 4 / 8


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


def _condition(golden: Path, dit: WanDiT) -> OmniAvatarAdd:
    """The released file as generation and training read it."""
    file = read_lora(golden / "omniavatar_exp").relative_to(dit.state_dict().__getitem__)
    settings = recorded_conditions(file.metadata)["omniavatar_add"]
    condition = build_condition("omniavatar_add", settings, dit.variant)
    assert load_conditions({"omniavatar_add": condition}, file.conditions, file.path) == []
    assert isinstance(condition, OmniAvatarAdd)
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
    condition = _condition(golden, base)
    dit = _with_lora(_base(golden), weights)
    for io in _cases(golden):
        silence = torch.zeros_like(io["audio_emb"])
        for found, name in ((_velocity(dit, condition, io, io["audio_emb"]), "velocity"),
                            (_velocity(dit, condition, io, silence), "velocity_zero_audio"),
                            (_velocity(base, condition, io, io["audio_emb"]), "velocity_lora_off")):
            torch.testing.assert_close(found, io[name], atol=TOLERANCE, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_audio_tokens_and_residuals_equal_omniavatars(golden: Path, weights: dict[str, Tensor]) -> None:
    condition = _condition(golden, _base(golden))
    for io in _cases(golden):
        tokens = condition.audio_proj(io["audio_emb"])
        torch.testing.assert_close(tokens[0], io["audio_tokens"], atol=TOLERANCE, rtol=0)
        residuals = condition.state(io["audio_emb"], io["y"][:, :16, :1], None).residuals
        torch.testing.assert_close(residuals[0], io["audio_residuals"], atol=TOLERANCE, rtol=0)


def test_absent_audio_is_the_originals_zero_audio(golden: Path, weights: dict[str, Tensor]) -> None:
    dit = _with_lora(_base(golden), weights)
    condition = _condition(golden, _base(golden))
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
    condition = _condition(golden, base)
    whole = with_base(condition.patch_embedding.weight, base.patch_embedding.weight)
    assert torch.equal(whole.bfloat16(), weights["patch_embedding.weight"])
