"""The tiny set: complete, deterministic, small, and sane enough to look at."""

import json
from pathlib import Path
import subprocess
import sys

import pytest
import torch

from tools.tiny.dit import IMAGE_DIM, VARIANTS
from tools.tiny.text import VOCABULARY, tokenizer_bytes
from tools.tiny.write import write_tiny_weights
import wan


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, tiny_weights: Path) -> None:
    write_tiny_weights(tmp_path / "same")
    write_tiny_weights(tmp_path / "other", seed=1)
    first, other = _files(tiny_weights), _files(tmp_path / "other")
    assert _files(tmp_path / "same") == first
    assert other.keys() == first.keys()
    fixed = {"google/umt5-xxl/spiece.model", "wav2vec2-base-960h/config.json",
             "wav2vec2-base-960h/preprocessor_config.json"}
    assert {name for name in first if other[name] == first[name]} == fixed


def test_the_set_is_small_and_says_that_it_is_random(tiny_weights: Path) -> None:
    files = _files(tiny_weights)
    assert sum(map(len, files.values())) < 12e6
    readme = files["README.md"].decode()
    assert "RANDOM" in readme
    assert all(f"`{name}`" in readme for name in files if name != "README.md")
    assert not any(name.endswith(".tmp") or Path(name).name.startswith(".") for name in files)


def test_command_writes_where_it_is_told(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, str(root / "tools" / "tiny_weights.py"), str(tmp_path / "a folder"), "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "10 files" in done.stdout
    assert "seed 3" in (tmp_path / "a folder" / "README.md").read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_dits_load_by_the_official_code_with_sane_velocities(name: str, tiny_weights: Path) -> None:
    dit = wan.load_dit(tiny_weights / name)
    assert dit.variant == VARIANTS[name]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 3, 8, 8, generator=generator)
    extra = {}
    if dit.variant.has_image_branch:
        extra = {"channels": torch.randn(1, 20, 3, 8, 8, generator=generator),
                 "clip_features": torch.randn(1, dit.variant.image_tokens, IMAGE_DIM, generator=generator)}
    texts = [torch.randn(length, 64, generator=generator) for length in (20, 9)]
    one, other = (dit(latents, torch.tensor([700.0]), [text], **extra) for text in texts)
    assert 0.7 < one.std() < 1.4
    assert 0.1 < (one - other).std() < 1
    assert torch.corrcoef(torch.stack([one.flatten(), latents.flatten()]))[0, 1] > 0.3


def test_vae_keeps_colours_and_does_not_saturate(tiny_weights: Path) -> None:
    vae = wan.load_vae(tiny_weights / "Wan2.1_VAE.pth")
    colour = torch.tensor([0.6, -0.2, -0.7]).reshape(1, 3, 1, 1, 1)
    video = colour * torch.linspace(-1, 1, 64).reshape(1, 1, 1, 1, 64).expand(1, 3, 9, 48, 64)
    latents = vae.encode(video)
    decoded = vae.decode(latents)
    assert 0.1 < latents.std() < 2
    assert (decoded[:, :, 5:] - video[:, :, 5:]).abs().mean() < 0.15
    noise = vae.decode(torch.randn(1, 16, 3, 6, 8, generator=torch.Generator().manual_seed(0)))
    assert noise.std() > 0.1
    assert (noise.abs() == 1).float().mean() < 0.05


def test_text_encoder_tells_captions_apart(tiny_weights: Path) -> None:
    encoder = wan.load_text_encoder(tiny_weights / "models_t5_umt5-xxl-enc-bf16.pth")
    cat, dog, empty = encoder.encode(["A cat walks over the grass.", "色调艳丽, a dog!", ""])
    assert cat.shape[1] == 64
    assert empty.shape == (1, 64)
    assert (cat.mean(0) - dog.mean(0)).std() > 0.1


def test_tokenizer_is_sentencepiece_with_the_ids_of_umt5() -> None:
    import sentencepiece

    model = tokenizer_bytes()
    assert tokenizer_bytes() == model
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.vocab_size()) == (0, 1, 2, VOCABULARY)
    for text in ("A young woman is talking to the camera.", "naïve 你好 ß 🙂"):
        ids = processor.encode(text)
        assert 2 not in ids
        assert processor.decode(ids) == text


def test_image_and_audio_encoders_load(tiny_weights: Path) -> None:
    image = wan.load_image_encoder(tiny_weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    tokens = image.encode(torch.rand(1, 3, 70, 100, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert tokens.shape == (1, 257, IMAGE_DIM)
    assert 0.1 < tokens.std() < 10
    audio = wan.load_audio_encoder(tiny_weights / "wav2vec2-base-960h")
    states = audio.encode(torch.randn(16000, generator=torch.Generator().manual_seed(0)), sample_rate=16000, fps=25)
    assert states.shape == (25, 3, 32)
    assert states.std(0).mean() > 0.1


def test_names_and_shapes_are_those_of_the_released_files(shared: Path, tiny_weights: Path) -> None:
    """Every name is in the released file; what that has more is further layers (and CLIP's text tower)."""
    from wan.weights.source import open_weights

    pairs = {"wan2.1_t2v_tiny.safetensors": "wan21_t2v_1.3B", "wan2.1_i2v_tiny.safetensors": "wan21_i2v_14B",
             "wan2.1_flf2v_tiny.safetensors": "wan21_flf2v_14B", "Wan2.1_VAE.pth": "wan21_vae",
             "models_t5_umt5-xxl-enc-bf16.pth": "umt5_xxl_encoder",
             "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth": "clip_xlm_roberta_vit_h_14"}
    for file, manifest in pairs.items():
        released = json.loads((shared / "manifests" / f"{manifest}.json").read_text())["tensors"]
        source = open_weights(tiny_weights / file)
        assert not set(source) - set(released), file
        for name in source:
            assert len(source.shape(name)) == len(released[name][0]), name
    assert set(open_weights(tiny_weights / "Wan2.1_VAE.pth")) == set(
        json.loads((shared / "manifests" / "wan21_vae.json").read_text())["tensors"])
