"""The full-size official files fit our models one to one: every key and shape, without their data."""

import json
from pathlib import Path
import struct

from wan.encoders import image, text, vae
from wan.weights.load import Adapted, plan
from wan.weights.source import WeightsSource, open_weights

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def hollow(shared: Path, manifest: str, path: Path) -> WeightsSource:
    """A safetensors file with the header of the published file and a hole in place of the data."""
    tensors = json.loads((shared / "manifests" / f"{manifest}.json").read_text())["tensors"]
    header, end = {}, 0
    for key, (shape, dtype) in tensors.items():
        count = 1
        for size in shape:
            count *= size
        start, end = end, end + count * BYTES[NAMES[dtype]]
        header[key] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text_header = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text_header)) + text_header)
        file.truncate(8 + len(text_header) + end)
    return open_weights(path)


def used(names: dict[str, str] | dict[str, str | Adapted]) -> set[str]:
    """Names in the file that a model's tensors come from."""
    return {origin.key if isinstance(origin, Adapted) else origin for origin in names.values()}


def test_vae_manifest_maps_one_to_one(shared: Path, tmp_path: Path) -> None:
    source = hollow(shared, "wan21_vae", tmp_path / "vae.safetensors")
    model, names = vae.vae_on_meta(source)
    plan(model, source, names, lambda key: False)
    assert used(names) == set(source) and len(names) == len(source) == 194
    assert sum(parameter.numel() for parameter in model.parameters()) == 126_892_531


def test_umt5_manifest_maps_one_to_one(shared: Path, tmp_path: Path) -> None:
    source = hollow(shared, "umt5_xxl_encoder", tmp_path / "t5.safetensors")
    model, names = text.text_encoder_on_meta(source)
    plan(model, source, names, lambda key: False)
    names.pop("encoder.embed_tokens.weight")  # the second name of `shared.weight`
    assert used(names) == set(source) and len(names) == len(source) == 242
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_680_910_336


def test_clip_manifest_maps_one_to_one_but_for_the_head(shared: Path, tmp_path: Path) -> None:
    source = hollow(shared, "clip_xlm_roberta_vit_h_14", tmp_path / "clip.safetensors")
    model, origins = image.image_encoder_on_meta(source, heads=16)
    plan(model, source, origins, image.is_not_needed)
    assert used(origins) == {key for key in source if key.startswith("visual.")} - {"visual.head"}
    split = [origin.key for origin in origins.values() if isinstance(origin, Adapted) and ".to_qkv." in origin.key]
    assert len(split) == 3 * len(set(split)) == 3 * 2 * 32
    assert model.config.image_size == 224 and model.config.num_hidden_layers == 32
