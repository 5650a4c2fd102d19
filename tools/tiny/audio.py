"""A tiny wav2vec2 in the layout of the facebook/wav2vec2-base-960h folder."""

from typing import Any

from torch import Tensor

from tools.tiny.draws import Draws

HIDDEN, LAYERS, HEADS, FFN = 32, 2, 4, 64
KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
POSITION_KERNEL, POSITION_GROUPS = 32, 4
LETTERS = 32

CONFIG: dict[str, Any] = {
    "architectures": ["Wav2Vec2ForCTC"], "model_type": "wav2vec2",
    "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FFN,
    "conv_dim": [HIDDEN] * len(KERNELS), "conv_kernel": list(KERNELS), "conv_stride": list(STRIDES),
    "num_feat_extract_layers": len(KERNELS), "conv_bias": False, "feat_extract_norm": "group",
    "feat_extract_activation": "gelu", "hidden_act": "gelu", "do_stable_layer_norm": False, "layer_norm_eps": 1e-5,
    "num_conv_pos_embeddings": POSITION_KERNEL, "num_conv_pos_embedding_groups": POSITION_GROUPS,
    "vocab_size": LETTERS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "mask_time_prob": 0.05,
    "hidden_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "feat_proj_dropout": 0.0,
    "final_dropout": 0.1, "layerdrop": 0.1, "initializer_range": 0.02,
}
PREPROCESSOR: dict[str, Any] = {
    "do_normalize": True, "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
    "padding_side": "right", "padding_value": 0.0, "return_attention_mask": False, "sampling_rate": 16000,
}


def audio_tensors(seed: int) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, float32, with the published file's prefix and weight norm names."""
    draws = Draws(seed, "wav2vec2")
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def norm(name: str) -> None:
        shapes.update({f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)})

    for layer, kernel in enumerate(KERNELS):
        shapes[f"feature_extractor.conv_layers.{layer}.conv.weight"] = (HIDDEN, HIDDEN if layer else 1, kernel)
    norm("feature_extractor.conv_layers.0.layer_norm")
    norm("feature_projection.layer_norm")
    linear("feature_projection.projection", HIDDEN, HIDDEN)
    position = "encoder.pos_conv_embed.conv."
    shapes |= {position + "bias": (HIDDEN,), position + "weight_g": (1, 1, POSITION_KERNEL),
               position + "weight_v": (HIDDEN, HIDDEN // POSITION_GROUPS, POSITION_KERNEL)}
    norm("encoder.layer_norm")
    for layer in range(LAYERS):
        block = f"encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{block}attention.{name}", HIDDEN, HIDDEN)
        linear(f"{block}feed_forward.intermediate_dense", FFN, HIDDEN)
        linear(f"{block}feed_forward.output_dense", HIDDEN, FFN)
        norm(f"{block}layer_norm")
        norm(f"{block}final_layer_norm")
    # GELU about halves the deviation from layer to layer; without the larger gain the last layers see nothing.
    tensors = draws.fill(shapes, lambda key: 1.7 if "conv_layers" in key else 1.0)
    named = {f"wav2vec2.{key}": tensor for key, tensor in tensors.items()}
    return named | draws.fill({"lm_head.weight": (LETTERS, HIDDEN), "lm_head.bias": (LETTERS,)})
