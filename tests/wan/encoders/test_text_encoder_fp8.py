"""umT5 with its linears in float8: close to the original's states, small, and remembered by the cache."""

from pathlib import Path

import pytest
from safetensors.torch import save_file
import torch
from torch import Tensor
import torch.nn.functional as F  # noqa: N812

from wan.encoders.features.text import TextFeatureEncoder
from wan.encoders.text import load_text_encoder
from wan.memory.fp8 import Fp8Linear, Fp8Settings

WIDTH, FEED_FORWARD, HEADS, LAYERS, VOCABULARY = 256, 640, 4, 3, 300
"""The proportions of umT5-XXL (4096, 10240, 64 of 64), at a sixteenth."""


@pytest.fixture(scope="module")
def umt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the official layout, normal with the deviations of transformers' initialisation."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=draws) * std

    head = WIDTH // HEADS
    state = {"token_embedding.weight": normal(VOCABULARY, WIDTH, std=1.0), "norm.weight": torch.ones(WIDTH)}
    for i in range(LAYERS):
        state |= {f"blocks.{i}.attn.{name}.weight": normal(WIDTH, WIDTH, std=WIDTH ** -0.5) for name in "kvo"}
        state |= {f"blocks.{i}.attn.q.weight": normal(WIDTH, WIDTH, std=(WIDTH * head) ** -0.5),
                  f"blocks.{i}.norm1.weight": torch.ones(WIDTH), f"blocks.{i}.norm2.weight": torch.ones(WIDTH),
                  f"blocks.{i}.pos_embedding.embedding.weight": normal(32, HEADS, std=WIDTH ** -0.5),
                  f"blocks.{i}.ffn.gate.0.weight": normal(FEED_FORWARD, WIDTH, std=WIDTH ** -0.5),
                  f"blocks.{i}.ffn.fc1.weight": normal(FEED_FORWARD, WIDTH, std=WIDTH ** -0.5),
                  f"blocks.{i}.ffn.fc2.weight": normal(WIDTH, FEED_FORWARD, std=FEED_FORWARD ** -0.5)}
    path = tmp_path_factory.mktemp("umt5") / "umt5.safetensors"
    save_file(state, path)
    return path


def _states(path: Path, dtype: torch.dtype, fp8: Fp8Settings | None) -> Tensor:
    ids = torch.randint(1, VOCABULARY, (40,), generator=torch.Generator().manual_seed(1))
    return load_text_encoder(path, dtype=dtype, fp8=fp8).encode_ids([ids])[0].float()


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.997), (torch.bfloat16, 0.997)])
def test_states_keep_their_direction(umt5: Path, dtype: torch.dtype, least: float) -> None:
    """e4m3 errs by 2.6 % of a weight (root mean square), so each branch by about that; 0.997 is 8 % of a state."""
    exact = _states(umt5, torch.float32, None)
    cosine = F.cosine_similarity(_states(umt5, dtype, Fp8Settings()), exact, dim=-1)
    assert least < cosine.min().item() < 0.99999


def test_every_linear_of_the_blocks_is_float8_and_the_embedding_is_not(umt5: Path) -> None:
    encoder = load_text_encoder(umt5, dtype=torch.bfloat16, fp8=Fp8Settings())
    linears = [module for module in encoder.model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 7 * LAYERS and all(isinstance(one, Fp8Linear) for one in linears)
    assert (encoder.dtype, encoder.model.shared.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    linear_bytes = sum(one.weight.nbytes + one.scale_weight.nbytes for one in linears)
    numbers = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * FEED_FORWARD)
    assert linear_bytes == numbers + numbers // 64 * 2


def test_the_cache_remembers_the_storage(light_t5: Path, spiece: bytes, tmp_path: Path) -> None:
    tokenizer = tmp_path / "spiece.model"
    tokenizer.write_bytes(spiece)
    plain = TextFeatureEncoder(load_text_encoder(light_t5, tokenizer=tokenizer), light_t5).options()
    stored = TextFeatureEncoder(load_text_encoder(light_t5, tokenizer=tokenizer, fp8=Fp8Settings()), light_t5).options()
    assert stored == plain | {"weights": "float8_e4m3fn block 64"}
