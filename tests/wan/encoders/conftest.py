"""Tiny encoders in the official file layouts, the same in every run: the weights are functions of their names."""

import io
from pathlib import Path

import pytest
import sentencepiece
import torch

from tests.light_set import light_state
from wan.encoders.text import build_text_encoder, official_key
from wan.modules.vae import Vae
from wan.modules.vae_coders import VaeShape

CLIP_WIDTH, CLIP_LAYERS = 48, 3


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """Keys (official, without `visual.`) and shapes of the light set's vision tower."""
    width, shapes = CLIP_WIDTH, {}
    for layer in range(CLIP_LAYERS):
        for name, shape in {
                "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
                "attn.to_qkv.weight": (3 * width, width), "attn.to_qkv.bias": (3 * width,),
                "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
                "mlp.0.weight": (4 * width, width), "mlp.0.bias": (4 * width,),
                "mlp.2.weight": (width, 4 * width), "mlp.2.bias": (width,)}.items():
            shapes[f"transformer.{layer}.{name}"] = shape
    norms = {f"{norm}.{part}": (width,) for norm in ("pre_norm", "post_norm") for part in ("weight", "bias")}
    return {"cls_embedding": (1, 1, width), "pos_embedding": (1, 17, width), **norms, **shapes,
            "patch_embedding.weight": (width, 3, 14, 14)}


@pytest.fixture(scope="session")
def light_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VAE of the light set, as a `.pth`."""
    path = tmp_path_factory.mktemp("vae") / "Wan2.1_VAE.pth"
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in Vae(VaeShape(width=8)).state_dict().items()}
    torch.save(light_state("vae", shapes, 0.2), path)
    return path


@pytest.fixture(scope="session")
def light_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """umT5 of the light set, as a `.pth`; no tokenizer beside it."""
    path = tmp_path_factory.mktemp("t5") / "models_t5_umt5-xxl-enc-bf16.pth"
    model = build_text_encoder(vocab_size=120, d_model=48, d_kv=12, d_ff=80, num_heads=4, num_layers=2,
                               relative_attention_num_buckets=32)
    shapes = {official_key(key): tensor.shape for key, tensor in model.state_dict().items()}
    torch.save(light_state("t5", shapes, 0.35), path)
    return path


@pytest.fixture(scope="session")
def light_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vision tower of the light set inside a whole CLIP, as a `.pth`."""
    path = tmp_path_factory.mktemp("clip") / "models_clip.pth"
    state = {f"visual.{key}": tensor for key, tensor in light_state("clip", clip_shapes(), 0.25).items()}
    torch.save(state | {"log_scale": torch.zeros(()), "visual.head": torch.zeros(CLIP_WIDTH, 8),
                        "textual.norm.weight": torch.ones(4)}, path)
    return path


@pytest.fixture(scope="session")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random wav2vec2 (2 layers of width 32), as transformers saves it."""
    from transformers import Wav2Vec2Model

    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    Wav2Vec2Model(tiny_wav2vec2_config()).save_pretrained(folder)
    return folder


def tiny_wav2vec2_config(**changes: object):
    """Config of a wav2vec2 with 2 layers of width 32."""
    from transformers import Wav2Vec2Config

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
             "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    return Wav2Vec2Config(**(sizes | changes))


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Whisper (8 encoder layers of width 16), as transformers saves it."""
    from transformers import WhisperModel

    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    WhisperModel(tiny_whisper_config()).save_pretrained(folder)
    return folder


def tiny_whisper_config(**changes: object):
    """Config of a Whisper with 8 encoder layers of width 16 over 8 mel bins."""
    from transformers import WhisperConfig

    sizes = {"d_model": 16, "encoder_layers": 8, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8,
             "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "vocab_size": 60,
             "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 4}
    return WhisperConfig(**(sizes | changes))


@pytest.fixture(scope="session")
def spiece() -> bytes:
    """A sentencepiece model with umT5's special ids: padding 0, end 1, unknown 2."""
    text = ["a woman speaks to the camera in a quiet room", "a man walks through the rain in a city at night",
            "the cat sleeps on a warm stone near the harbour", "quick zebras jump over lazy foxes, they say",
            "her voice is calm; his hands move while he explains the plan", "big boats wait for the next wave"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 4), model_writer=model, vocab_size=48, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2)
    return model.getvalue()
