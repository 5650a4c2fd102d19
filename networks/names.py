"""How one module of the Wan DiT is spelled in different LoRA files.

A name is never taken apart at its underscores: each of the model's real paths is written in all spellings, and these
are looked up in the file.
"""

import re

_BLOCK = re.compile(r"^(.*\bblocks\.\d+)\.(.+)$")

_IN_BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_OUTSIDE = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}


def diffusers_path(path: str) -> str:
    """The module's path in diffusers' `WanTransformer3DModel`; `path` itself where the two agree."""
    match = _BLOCK.match(path)
    if match:
        return f"{match[1]}.{_IN_BLOCK.get(match[2], match[2])}"
    return _OUTSIDE.get(path, path)


def kohya_name(path: str) -> str:
    """``lora_unet_`` and the path with underscores for dots: the name of a module in kohya's files."""
    return "lora_unet_" + path.replace(".", "_")


def spellings(path: str) -> tuple[str, ...]:
    """All names, without prefix, under which a file may speak of the module at `path`; official spelling first."""
    other = diffusers_path(path)
    names = (path, path.replace(".", "_"), other, other.replace(".", "_"))
    return tuple(dict.fromkeys(names))
