"""A tiny umT5 encoder in the layout of `models_t5_umt5-xxl-enc-bf16.pth`, and its tokenizer."""

import io

import torch
from torch import Tensor

from tools.tiny.corpus import sentences
from tools.tiny.dit import TEXT_DIM
from tools.tiny.draws import Draws

VOCABULARY = 512
"""3 special pieces, 256 single bytes (so that every script can be written) and what the text gives."""
LAYERS, HEADS, FFN, BUCKETS = 2, 4, 128, 32


def tokenizer_bytes() -> bytes:
    """`spiece.model`: a unigram sentencepiece model, pad 0, end 1, unknown 2. The same bytes on every call."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=model, model_type="unigram", vocab_size=VOCABULARY,
        byte_fallback=True, character_coverage=1.0, num_threads=1, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        shuffle_input_sentence=False, minloglevel=2)
    return model.getvalue()


def text_tensors(seed: int) -> dict[str, Tensor]:
    """All tensors of the encoder, bfloat16, official names."""
    draws = Draws(seed, "umt5")
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (VOCABULARY, TEXT_DIM), "norm.weight": (TEXT_DIM,)}
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        shapes |= {f"{block}attn.{name}.weight": (TEXT_DIM, TEXT_DIM) for name in "qkvo"}
        shapes |= {f"{block}norm1.weight": (TEXT_DIM,), f"{block}norm2.weight": (TEXT_DIM,),
                   f"{block}ffn.gate.0.weight": (FFN, TEXT_DIM), f"{block}ffn.fc1.weight": (FFN, TEXT_DIM),
                   f"{block}ffn.fc2.weight": (TEXT_DIM, FFN),
                   f"{block}pos_embedding.embedding.weight": (BUCKETS, HEADS)}
    # The attention has no scaling of its own: small queries keep it from picking single tokens.
    tensors = draws.fill(shapes, lambda key: 0.3 if ".q." in key else 1.0)
    tensors["token_embedding.weight"] = draws.normal("token_embedding.weight", (VOCABULARY, TEXT_DIM))
    return {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
