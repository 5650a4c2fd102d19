"""The DiT against the original code's numbers: Wan 2.1 (and 2.2, whose A14B and TI2V use the same network)."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch
from torch import Tensor

from tests.light_set import light_input, light_outputs, light_state
from tests.tiny_dit import dit_from_file
from wan.modules.dit import WanDiT
from wan.variants import Variant

TOLERANCE = 5e-5


@pytest.mark.parametrize("model", ["wan21_t2v_dit", "wan21_i2v_dit", "wan21_flf2v_dit", "wan22_t2v_a14b_high",
                                   "wan22_i2v_a14b", "wan22_ti2v_5b"])
def test_velocity_equals_the_original(golden: Path, model: str) -> None:
    dit = dit_from_file(golden / f"{model}.safetensors")
    stored = load_file(golden / f"{model}_io.safetensors")
    cases = sorted({name.split(".")[0] for name in stored})
    assert cases
    for case in cases:
        io = {name.split(".", 1)[1]: value for name, value in stored.items() if name.split(".")[0] == case}
        velocity = _run(dit, io)
        torch.testing.assert_close(velocity, io["velocity"], atol=TOLERANCE, rtol=0)


def _run(dit: WanDiT, io: dict[str, Tensor]) -> Tensor:
    latents = io["x"][None]
    tokens = latents[0, 0].numel() // 4
    timestep = io["t"] if len(io["t"]) == 1 else io["t"][None, :tokens]  # per token, without the padding's
    channels = io["y"][None] if "y" in io else None
    clip = io["clip"].flatten(0, 1)[None] if "clip" in io else None
    return dit(latents, timestep, [io["context"]], channels=channels, clip_features=clip)[0]


LIGHT_VARIANT = {"dim": 256, "ffn_dim": 320, "layers": 3, "heads": 2, "out_channels": 16, "text_dim": 40}
LIGHT_CASES = {0: ((1, 4, 6), 9, 41.0), 1: ((4, 6, 4), 512, 730.25)}


@pytest.mark.parametrize("case", LIGHT_CASES)
@pytest.mark.parametrize("model", ["t2v", "i2v"])
def test_light_set_velocity(model: str, case: int) -> None:
    """Original: Wan 2.1 `wan/modules/model.py`, float32 (the CLIP width 48 instead of 1280)."""
    is_i2v = model == "i2v"
    dit = WanDiT(Variant(**LIGHT_VARIANT, in_channels=36 if is_i2v else 16, has_image_branch=is_i2v,
                         image_dim=48 if is_i2v else None)).eval()
    dit.load_state_dict(light_state(model, {key: value.shape for key, value in dit.state_dict().items()}, 0.12))
    size, prompt_tokens, timestep = LIGHT_CASES[case]

    def given(name: str, *shape: int) -> Tensor:
        return light_input(f"{model}{case}.{name}", shape, scaled=True)

    with torch.no_grad():
        velocity = dit(given("x", 16, *size)[None], torch.tensor([timestep]), [given("context", prompt_tokens, 40)],
                       channels=given("y", 20, *size)[None] if is_i2v else None,
                       clip_features=given("clip", 1, 257, 48) if is_i2v else None)
    torch.testing.assert_close(velocity[0], light_outputs()[f"{model}{case}.velocity"], atol=TOLERANCE, rtol=0)
