"""Names of a DiT's tensors: the official ones, which are ours, and those of diffusers' `WanTransformer3DModel`."""

import re

BLOCK = re.compile(r"^(blocks\.\d+\.)(.+)$")

OUTSIDE_BLOCKS = {
    "time_embedding.0.": "condition_embedder.time_embedder.linear_1.",
    "time_embedding.2.": "condition_embedder.time_embedder.linear_2.",
    "time_projection.1.": "condition_embedder.time_proj.",
    "text_embedding.0.": "condition_embedder.text_embedder.linear_1.",
    "text_embedding.2.": "condition_embedder.text_embedder.linear_2.",
    "img_emb.proj.0.": "condition_embedder.image_embedder.norm1.",
    "img_emb.proj.1.": "condition_embedder.image_embedder.ff.net.0.proj.",
    "img_emb.proj.3.": "condition_embedder.image_embedder.ff.net.2.",
    "img_emb.proj.4.": "condition_embedder.image_embedder.norm2.",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.modulation": "scale_shift_table",
    "head.head.": "proj_out.",
}
"""Beginnings of names, official to diffusers; `patch_embedding` is the same in both."""

_ATTENTION = {"q.": "to_q.", "k.": "to_k.", "v.": "to_v.", "o.": "to_out.0.",
              "norm_q.": "norm_q.", "norm_k.": "norm_k."}
INSIDE_BLOCKS = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "cross_attn.k_img.": "attn2.add_k_proj.",
    "cross_attn.v_img.": "attn2.add_v_proj.",
    "cross_attn.norm_k_img.": "attn2.norm_added_k.",
    "norm3.": "norm2.",  # the official norm2 and diffusers' norm3 have no weights
    "ffn.0.": "ffn.net.0.proj.",
    "ffn.2.": "ffn.net.2.",
    "modulation": "scale_shift_table",
}


def to_diffusers(key: str) -> str:
    """diffusers' name of an official one; a name that is not in the table is returned as it is."""
    return _rename(key, OUTSIDE_BLOCKS, INSIDE_BLOCKS)


def from_diffusers(key: str) -> str:
    """Official name of one of diffusers'; the inverse of `to_diffusers`."""
    return _rename(key, {theirs: ours for ours, theirs in OUTSIDE_BLOCKS.items()},
                   {theirs: ours for ours, theirs in INSIDE_BLOCKS.items()})


def _rename(key: str, outside: dict[str, str], inside: dict[str, str]) -> str:
    match = BLOCK.match(key)
    head, rest, table = (match[1], match[2], inside) if match else ("", key, outside)
    for old, new in table.items():
        if rest == old or (old.endswith(".") and rest.startswith(old)):
            return head + new + rest.removeprefix(old)
    return key
