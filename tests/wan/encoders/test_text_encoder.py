"""umT5 against the original's outputs, and every layout that its weights come in."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
import torch

from common.errors import WeightsError
from tests.light_set import light_input, light_outputs
from wan.encoders.text import load_text_encoder, official_key, tokenizer_for


def light_ids(case: int, count: int) -> torch.Tensor:
    """Ids of a case of the light set (golden README section 12)."""
    return ((light_input(f"t5{case}.ids", (count,)) + 1) * 59).floor().long() + 1


@pytest.mark.parametrize(("case", "count"), [(0, 5), (1, 140)])
def test_light_set_is_met(light_t5: Path, case: int, count: int) -> None:
    """Source: Wan 2.1's own umT5 in float32 on ids padded to 512 with a mask."""
    context = load_text_encoder(light_t5).encode_ids([light_ids(case, count)])[0]
    assert (context - light_outputs()[f"t5{case}.context"]).abs().max() < 1.5e-4


def test_golden_context_is_met(golden: Path) -> None:
    encoder, cases = load_text_encoder(golden / "umt5_encoder.pth"), load_file(golden / "umt5_encoder_io.safetensors")
    contexts = encoder.encode_ids([cases[f"{case}.ids"] for case in range(3)])
    for case, context in enumerate(contexts):
        assert (context - cases[f"{case}.context"]).abs().max() < 1.5e-4


def hugging_face_state(path: Path) -> dict[str, torch.Tensor]:
    """The official file's tensors under transformers' names, the embedding under both of its names."""
    state, encoder = torch.load(path, weights_only=True), load_text_encoder(path)
    return {key: state[official_key(key)].clone() for key in encoder.model.state_dict()}


def test_every_layout_gives_the_same_numbers(light_t5: Path, tmp_path: Path) -> None:
    official, hf = torch.load(light_t5, weights_only=True), hugging_face_state(light_t5)
    layouts = {
        "prefixed": {f"encoder.{key}": tensor for key, tensor in official.items()},
        "both": hf,
        "shared": {key: tensor for key, tensor in hf.items() if key != "encoder.embed_tokens.weight"},
        "stack": {key: tensor for key, tensor in hf.items() if key != "shared.weight"},
        "whole": hf | {"decoder.final_layer_norm.weight": torch.ones(48), "lm_head.weight": torch.ones(120, 48)},
    }
    ids = light_ids(0, 5)
    expected = load_text_encoder(light_t5).encode_ids([ids])[0]
    for name, state in layouts.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        assert torch.equal(load_text_encoder(tmp_path / f"{name}.safetensors").encode_ids([ids])[0], expected), name


def test_official_names_are_those_of_the_key_map(shared: Path) -> None:
    """Source: key maps made by comparing the original with transformers."""
    maps = json.loads((shared / "manifests" / "key_maps_to_diffusers_and_transformers.json").read_text())
    assert [official_key(name) for name in maps["umt5_encoder"].values()] == list(maps["umt5_encoder"])


def test_comfyui_fp8_scales_are_applied_and_its_tokenizer_used(light_t5: Path, tmp_path: Path, spiece: bytes) -> None:
    state = hugging_face_state(light_t5)
    del state["encoder.embed_tokens.weight"]
    expected = dict(state)
    for key in [key for key in state if key.endswith((".q.weight", ".wo.weight"))]:
        scale = state[key].abs().max() / 448
        state[key] = (state[key] / scale).to(torch.float8_e4m3fn)
        state[key.removesuffix("weight") + "scale_weight"] = scale
        expected[key] = state[key].float() * scale
    state |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
              "spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}
    save_file(state, tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    save_file(expected, tmp_path / "plain.safetensors")
    encoder = load_text_encoder(tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    ids = torch.tensor(encoder.tokenizer("a woman walks"))
    plain = load_text_encoder(tmp_path / "plain.safetensors").encode_ids([ids])[0]
    assert torch.equal(encoder.encode(["a woman walks"])[0], plain)


def test_a_prompt_does_not_depend_on_its_neighbours(light_t5: Path, tmp_path: Path, spiece: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(spiece)
    encoder = load_text_encoder(light_t5, tokenizer=tmp_path)
    together = encoder.encode(["a cat", "", "a woman speaks to the camera in the rain"])
    assert together[1].shape == (1, 48), "an empty prompt is the end token alone"
    for prompt, hidden in zip(["a cat", ""], together, strict=False):
        assert torch.equal(encoder.encode([prompt])[0], hidden)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_prompts_encoded_together_are_those_of_one_by_one(light_t5: Path, dtype: torch.dtype, tolerance: float) -> None:
    """Padding is masked, so nothing but the order of sums differs; rows keep their order and their own length."""
    encoder = load_text_encoder(light_t5, dtype=dtype)
    ids = [light_ids(case % 2, count) for case, count in enumerate((5, 1, 140, 17, 3, 64, 5))]
    alone = encoder.encode_ids(ids)
    assert [len(one) for one in alone] == [5, 1, 140, 17, 3, 64, 5]
    for batch_size in (2, 3, 64):
        together = encoder.encode_ids(ids, batch_size=batch_size)
        for found, expected in zip(together, alone, strict=True):
            assert found.shape == expected.shape and (found - expected).abs().max() < tolerance
            assert found.untyped_storage().nbytes() == found.nbytes


def test_bfloat16_and_float64_are_computed_in(light_t5: Path) -> None:
    ids = light_ids(0, 5)
    exact = load_text_encoder(light_t5, dtype=torch.float64).encode_ids([ids])[0]
    half = load_text_encoder(light_t5, dtype=torch.bfloat16).encode_ids([ids])[0]
    assert exact.dtype == torch.float64 and half.dtype == torch.bfloat16
    assert (exact - light_outputs()["t50.context"]).abs().max() < 1.5e-4
    assert (half - exact).abs().max() < 0.2


def test_without_a_tokenizer_ids_work_and_prompts_name_the_four_places(light_t5: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(light_t5.parent / "no-hub"))
    encoder = load_text_encoder(light_t5)
    assert encoder.encode_ids([[5, 6, 1]])[0].shape == (3, 48)
    with pytest.raises(WeightsError) as error:
        encoder.encode(["a cat"])
    for place in ("--tokenizer", "spiece_model", "google/umt5-xxl", "no-hub"):
        assert place in str(error.value)


def test_a_tokenizer_larger_than_the_embedding_is_refused(light_t5: Path, tmp_path: Path, spiece: bytes) -> None:
    state = torch.load(light_t5, weights_only=True)
    state["token_embedding.weight"] = state["token_embedding.weight"][:40]
    torch.save(state, tmp_path / "small.pth")
    (tmp_path / "spiece.model").write_bytes(spiece)
    with pytest.raises(WeightsError, match=r"48 ids for small\.pth, which embeds 40"):
        load_text_encoder(tmp_path / "small.pth")


def test_the_tokenizer_is_found_without_the_weights(light_t5: Path, tmp_path: Path, spiece: bytes,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub"))
    with pytest.raises(WeightsError, match="no umT5 tokenizer found"):
        tokenizer_for(light_t5)
    (tmp_path / "spiece.model").write_bytes(spiece)
    assert tokenizer_for(light_t5, tmp_path).size == 48


def test_a_half_matching_file_is_refused(light_t5: Path, tmp_path: Path) -> None:
    state = torch.load(light_t5, weights_only=True)
    del state["blocks.1.pos_embedding.embedding.weight"]
    state["blocks.1.stranger.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(WeightsError) as error:
        load_text_encoder(tmp_path / "half.pth")
    for part in ("1 missing: blocks.1.pos_embedding.embedding.weight", "1 unexpected: blocks.1.stranger.weight"):
        assert part in str(error.value)


def test_another_model_is_named_as_no_text_encoder(light_vae: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a umT5 text encoder.*models_t5"):
        load_text_encoder(light_vae)
