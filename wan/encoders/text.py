"""The umT5 text encoder: loading any layout on to transformers' class, and encoding prompts."""

from collections.abc import Callable, Sequence
import os
import re
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.errors import WeightsError
from wan.encoders.detect import count_blocks, need
from wan.encoders.tokenizer import EMBEDDED_KEY, Tokenizer, find_tokenizer
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_model import use_fp8_linears
from wan.weights.load import load_into
from wan.weights.source import WeightsSource, open_weights

PREFERRED = ("models_t5_umt5-xxl-enc-bf16.pth", "models_t5*.pth", "umt5*.safetensors")
REMEDY = "Give models_t5_umt5-xxl-enc-bf16.pth of any Wan 2.1 download, or ComfyUI's umt5_xxl_*.safetensors."

OFFICIAL_RULES = tuple((re.compile(pattern), new) for pattern, new in (
    (r"^(shared|encoder\.embed_tokens)\.", "token_embedding."),
    (r"^encoder\.final_layer_norm\.", "norm."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.",
     r"blocks.\1.pos_embedding.embedding."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.", r"blocks.\1.attn."),
    (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.", r"blocks.\1.norm1."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.", r"blocks.\1.norm2."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.", r"blocks.\1.ffn.gate.0."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.", r"blocks.\1.ffn.fc1."),
    (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.", r"blocks.\1.ffn.fc2."),
))
"""Name in transformers' `UMT5EncoderModel` -> name in the official file; every name matches one rule."""
NOT_NEEDED = ("decoder.", "lm_head.", "encoder.embed_tokens.", EMBEDDED_KEY)
"""Parts of whole umT5 checkpoints, the second name of the embedding, and ComfyUI's tokenizer."""


class TextEncoder:
    """Prompts to umT5 hidden states; each by itself unless a batch is asked for, so that none depends on neighbours."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | WeightsError, fp8: Fp8Settings | None = None) -> None:
        self.model = model
        self.fp8 = fp8
        """How the linears are stored; None: in the dtype that is computed in."""
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; WeightsError naming the places looked at when none was found."""
        if isinstance(self._tokenizer, WeightsError):
            raise self._tokenizer
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in and returned."""
        return self.model.shared.weight.dtype

    def encode(self, prompts: Sequence[str], *, batch_size: int = 1) -> list[Float[Tensor, "L D"]]:
        """Hidden states of each prompt without padding; L at most 512, the end token included."""
        return self.encode_ids([torch.tensor(self.tokenizer(prompt)) for prompt in prompts], batch_size=batch_size)

    @torch.no_grad()
    def encode_ids(self, ids: Sequence[Tensor | Sequence[int]], *, batch_size: int = 1) -> list[Float[Tensor, "L D"]]:
        """Hidden states of prompts given as ids ` L` without padding.

        With a `batch_size` those of about equal length go together, the shorter ones padded and masked, and the
        padding is dropped: equal to one by one but for rounding.
        """
        rows = [torch.as_tensor(row, dtype=torch.long, device=self.device) for row in ids]
        if batch_size == 1:
            return [self.model(input_ids=row[None]).last_hidden_state[0] for row in rows]
        by_length = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        states: dict[int, Tensor] = {}
        for start in range(0, len(rows), batch_size):
            members = by_length[start:start + batch_size]
            padded = nn.utils.rnn.pad_sequence([rows[index] for index in members], batch_first=True)
            lengths = torch.tensor([len(rows[index]) for index in members], device=self.device)
            mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
            found = self.model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
            # Copies, because a part of a batch would keep all of it in memory.
            states |= {index: row[:len(rows[index])].clone() for index, row in zip(members, found, strict=True)}
        return [states[index] for index in range(len(rows))]


def load_text_encoder(path: str | os.PathLike[str], *, tokenizer: str | os.PathLike[str] | None = None,
                      dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
                      fp8: Fp8Settings | None = None) -> TextEncoder:
    """The umT5 encoder in `path` (a file or a folder that holds it), frozen; its sizes are read from the weights.

    `tokenizer`: its file or folder; otherwise it is looked for, and its absence is told when a prompt is to be encoded.
    With `fp8` the linears of the blocks are stored in fp8, and computed from in `dtype`.
    Raises WeightsError when the file is no umT5 encoder, holds it only in part, or `tokenizer` does not fit it.
    """
    with open_weights(path, preferred=PREFERRED) as source:
        model, names = text_encoder_on_meta(source)
        found = _tokenizer(source, tokenizer, model.config.vocab_size)
        if fp8 is not None:
            use_fp8_linears(model, fp8, within="encoder.block")
        load_into(model, source, names, dtype=dtype, device=device, ignored=is_not_needed)
    if fp8 is not None:
        _hide_weights(model)
    return TextEncoder(model, found, fp8)


class _WithoutWeight(nn.Module):
    """A linear that shows no weight: transformers would cast the input of `wo` to the weight's dtype, float8 too."""

    weight = None

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """The linear's result."""
        result: Tensor = self.linear(x)
        return result


def _hide_weights(model: nn.Module) -> None:
    for name, module in [*model.named_modules()]:
        if name.endswith(".wo") and isinstance(module, Fp8Linear):
            model.set_submodule(name, _WithoutWeight(module))


def tokenizer_for(path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None) -> Tokenizer:
    """The tokenizer that `load_text_encoder` would use, found and checked without reading the weights.

    WeightsError when none is found or it does not fit.
    """
    with open_weights(path, preferred=PREFERRED) as source:
        found = _tokenizer(source, tokenizer, source.shape(_layout(source)("shared.weight"))[0])
    if isinstance(found, WeightsError):
        raise found
    return found


def text_encoder_on_meta(source: WeightsSource) -> tuple[nn.Module, dict[str, str]]:
    """transformers' empty umT5 encoder for the weights in `source`, and {name in it: name in the source}."""
    name = _layout(source)
    model = _build(source, name)
    return model, {key: name(key) for key in model.state_dict()}


def is_not_needed(key: str) -> bool:
    """Whether a umT5 file may hold `key` although the encoder does not use it."""
    return key.startswith(NOT_NEEDED)


def official_key(key: str) -> str:
    """Name in the official file of the tensor that transformers' `UMT5EncoderModel` calls `key`."""
    for pattern, new in OFFICIAL_RULES:
        if pattern.match(key):
            return pattern.sub(new, key)
    raise AssertionError(f"no rule for {key}")


def build_text_encoder(**sizes: Any) -> nn.Module:
    """transformers' umT5 encoder on the meta device, as Wan uses it."""
    from transformers import UMT5Config, UMT5EncoderModel

    # Eager attention is bit-equal to the original; the fused kernel differs by several per cent in bfloat16.
    config = UMT5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0, attn_implementation="eager",
                        relative_attention_max_distance=128, layer_norm_epsilon=1e-6)
    with torch.device("meta"):
        return UMT5EncoderModel(config)


def _layout(source: WeightsSource) -> Callable[[str], str]:
    """Function from the model's names to the file's."""
    if "token_embedding.weight" in source:
        return official_key
    if "encoder.token_embedding.weight" in source:
        return lambda key: "encoder." + official_key(key)
    if "shared.weight" in source or "encoder.embed_tokens.weight" in source:
        embedding = "shared.weight" if "shared.weight" in source else "encoder.embed_tokens.weight"
        tied = ("shared.weight", "encoder.embed_tokens.weight")
        return lambda key: embedding if key in tied else key
    need(source, ["token_embedding.weight"], what="a umT5 text encoder", remedy=REMEDY)
    raise AssertionError


def _build(source: WeightsSource, name: Callable[[str], str]) -> nn.Module:
    block = "encoder.block.0.layer."
    embedding, query, bias, gate = known_by = [name(key) for key in (
        "shared.weight", f"{block}0.SelfAttention.q.weight", f"{block}0.SelfAttention.relative_attention_bias.weight",
        f"{block}1.DenseReluDense.wi_0.weight")]
    need(source, known_by, what="a umT5 text encoder", remedy=REMEDY)
    heads = source.shape(bias)[1]
    blocks = bias.partition(".0.")[0] + "."
    return build_text_encoder(
        vocab_size=source.shape(embedding)[0], d_model=source.shape(embedding)[1], num_heads=heads,
        d_kv=source.shape(query)[0] // heads, d_ff=source.shape(gate)[0], num_layers=count_blocks(source, blocks),
        relative_attention_num_buckets=source.shape(bias)[0])


def _tokenizer(source: WeightsSource, given: str | os.PathLike[str] | None,
               vocabulary: int) -> Tokenizer | WeightsError:
    try:
        tokenizer = find_tokenizer(source.path, given, source=source)
    except WeightsError as error:
        if given is not None:
            raise
        return error
    if tokenizer.size > vocabulary:
        raise WeightsError(f"{tokenizer.origin}: a tokenizer of {tokenizer.size} ids for {source.path.name}, "
                           f"which embeds {vocabulary}. Give --tokenizer the one that belongs to the weights.")
    return tokenizer
