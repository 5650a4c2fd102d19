"""Writing one DiT in every layout that users have, from the tensors of an official file."""

from collections.abc import Callable
import json
from pathlib import Path

from safetensors.torch import save_file
import torch
from torch import Tensor

from wan.weights.keys import to_diffusers

Tensors = dict[str, Tensor]


def official(folder: Path, tensors: Tensors) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def wrong_suffix(folder: Path, tensors: Tensors) -> Path:
    with open(folder / "model.safetensors", "wb") as file:
        torch.save(tensors, file)
    return folder / "model.safetensors"


def pth(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "model.pth")
    return folder / "model.pth"


def pth_in_state_dict(folder: Path, tensors: Tensors) -> Path:
    torch.save({"epoch": 3, "state_dict": tensors}, folder / "model.pth")
    return folder / "model.pth"


def pth_before_torch_1_6(folder: Path, tensors: Tensors) -> Path:
    torch.save(tensors, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def _shards(folder: Path, tensors: Tensors, stem: str = "diffusion_pytorch_model", count: int = 3) -> dict[str, str]:
    names, places = sorted(tensors), {}
    for number in range(count):
        file = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    return places


def one_shard_given(folder: Path, tensors: Tensors) -> Path:
    _shards(folder, tensors)
    return folder / "diffusion_pytorch_model-00002-of-00003.safetensors"


def pattern_given(folder: Path, tensors: Tensors) -> Path:
    _shards(folder, tensors)
    return folder / "diffusion_pytorch_model-*.safetensors"


def index_given(folder: Path, tensors: Tensors) -> Path:
    places = _shards(folder, tensors)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def official_folder(folder: Path, tensors: Tensors) -> Path:
    index_given(folder, tensors)
    save_file({"encoder.conv1.weight": torch.zeros(1)}, folder / "something_else.safetensors")
    torch.save({"token_embedding.weight": torch.zeros(1)}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    return folder


def diffusers_folder(folder: Path, tensors: Tensors) -> Path:
    inner = folder / "transformer"
    inner.mkdir()
    index_given(inner, {to_diffusers(name): tensor for name, tensor in tensors.items()})
    (inner / "config.json").write_text(json.dumps({"num_attention_heads": 2, "attention_head_dim": 128}))
    return folder


def comfyui(folder: Path, tensors: Tensors) -> Path:
    return official(folder, {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()})


def comfyui_short(folder: Path, tensors: Tensors) -> Path:
    return official(folder, {f"diffusion_model.{name}": tensor for name, tensor in tensors.items()})


def all_in_one(folder: Path, tensors: Tensors) -> Path:
    named = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    named["vae.decoder.conv1.weight"] = torch.zeros(2)
    named["text_encoders.umt5xxl.transformer.shared.weight"] = torch.zeros(2)
    return official(folder, named)


LAYOUTS: tuple[Callable[[Path, Tensors], Path], ...] = (
    official, wrong_suffix, pth, pth_in_state_dict, pth_before_torch_1_6, one_shard_given, pattern_given, index_given,
    official_folder, diffusers_folder, comfyui, comfyui_short, all_in_one)


def is_scaled(name: str) -> bool:
    """The linears that fp8 files store in 8 bits."""
    return name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name


def scaled_fp8(folder: Path, tensors: Tensors, *, newer: bool, prefix: str = "model.diffusion_model.") -> Path:
    """ComfyUI's fp8_scaled, one scale a weight, in the older or newer spelling."""
    stored: Tensors = {} if newer else {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    quantisation = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for name, tensor in tensors.items():
        if not is_scaled(name):
            stored[name] = tensor
            continue
        scale = tensor.float().abs().max() / 448
        stem = name.removesuffix(".weight")
        stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        stored[f"{stem}.weight_scale" if newer else f"{stem}.scale_weight"] = scale
        stored[f"{stem}.input_scale" if newer else f"{stem}.scale_input"] = torch.ones(())
        if newer:
            stored[f"{stem}.comfy_quant"] = quantisation.clone()
    return official(folder, {prefix + name: tensor for name, tensor in stored.items()})
