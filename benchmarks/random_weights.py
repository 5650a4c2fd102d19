"""Write weights of the real sizes, filled with random numbers, in the official layouts.

    python -m benchmarks.random_weights OUT_DIR --task t2v-14B

Makes the DiT as six shards, Wan2.1_VAE.pth, the umT5-XXL .pth with a small tokenizer, and a wav2vec2-base folder:
about 41 GB for a 14B model. For timing and memory only; a picture made with them is noise.
"""

import argparse
from collections.abc import Iterator, Mapping
import json
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from tools.tiny.text import tokenizer_bytes  # noqa: E402
from training.estimating.random_weights import random_weight  # noqa: E402

SHARDS = 6
_14B = {"dim": 5120, "ffn_dim": 13824, "layers": 40, "heads": 40, "out_channels": 16, "text_dim": 4096}
SIZES = {
    "tiny": {"dim": 128, "ffn_dim": 256, "layers": 4, "heads": 1, "in_channels": 16, "out_channels": 16,
             "text_dim": 4096},
    "t2v-1.3B": {"dim": 1536, "ffn_dim": 8960, "layers": 30, "heads": 12, "in_channels": 16, "out_channels": 16,
                 "text_dim": 4096},
    "t2v-14B": {**_14B, "in_channels": 16},
    "i2v-14B": {**_14B, "in_channels": 36, "has_image_branch": True, "image_dim": 1280},
}


def parts(model: torch.nn.Module, count: int) -> Iterator[Mapping[str, torch.Size]]:
    """Names and shapes of the model's state, cut into `count` parts of about equal size."""
    state = {name: tensor.shape for name, tensor in model.state_dict().items()}
    total, part, size = sum(shape.numel() for shape in state.values()), {}, 0
    for name, shape in state.items():
        part[name] = shape
        size += shape.numel()
        if size >= total / count:
            yield part
            part, size = {}, 0
    if part:
        yield part


def write_dit(folder: Path, task: str, device: str) -> None:
    """Shards named as the official ones, bfloat16, with their index."""
    from safetensors.torch import save_file

    from wan.modules.dit import WanDiT
    from wan.variants import Variant

    with torch.device("meta"):
        model = WanDiT(Variant(**SIZES[task]))
    index = {}
    groups = list(parts(model, SHARDS))
    for number, shapes in enumerate(groups, 1):
        name = f"diffusion_pytorch_model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {key: random_weight(key, shape, torch.bfloat16, device).cpu() for key, shape in shapes.items()}
        save_file(tensors, folder / name)
        index |= dict.fromkeys(shapes, name)
        print(f"  {name}", flush=True)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def write_pth(path: Path, shapes: Mapping[str, torch.Size], dtype: torch.dtype, device: str) -> None:
    """A plain state dict as torch.save writes it."""
    torch.save({key: random_weight(key, shape, dtype, device).cpu() for key, shape in shapes.items()}, path)
    print(f"  {path.name}", flush=True)


def vae_shapes() -> dict[str, torch.Size]:
    """Official keys of Wan2.1_VAE.pth: 194 tensors, 126,892,531 numbers."""
    from wan.modules.vae import Vae
    from wan.modules.vae_coders import VaeShape

    with torch.device("meta"):
        model = Vae(VaeShape())
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def umt5_xxl_shapes(layers: int = 24) -> dict[str, torch.Size]:
    """Official keys of the umT5-XXL encoder: 242 tensors, 5,680,910,336 numbers; fewer `layers` for less to load."""
    width, feed_forward, heads = 4096, 10240, 64
    shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (256384, width), "norm.weight": (width,)}
    for i in range(layers):
        block = f"blocks.{i}."
        shapes |= {f"{block}attn.{name}.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{block}norm1.weight": (width,), f"{block}norm2.weight": (width,),
                   f"{block}pos_embedding.embedding.weight": (32, heads),
                   f"{block}ffn.gate.0.weight": (feed_forward, width), f"{block}ffn.fc1.weight": (feed_forward, width),
                   f"{block}ffn.fc2.weight": (width, feed_forward)}
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def write_wav2vec(folder: Path) -> None:
    """A randomly initialised wav2vec2-base in its Hugging Face folder."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": 16000}))
    print(f"  {folder.name}", flush=True)


def main() -> None:
    """Write the whole set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", default="t2v-14B")
    parser.add_argument("--text_layers", type=int, default=24, help="of umT5, where it is not what is measured")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_dit(arguments.out, arguments.task, device)
    write_pth(arguments.out / "Wan2.1_VAE.pth", vae_shapes(), torch.float32, device)
    text = umt5_xxl_shapes(arguments.text_layers)
    write_pth(arguments.out / "models_t5_umt5-xxl-enc-bf16.pth", text, torch.bfloat16, device)
    tokenizer = arguments.out / "google" / "umt5-xxl" / "spiece.model"
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_bytes(tokenizer_bytes())
    write_wav2vec(arguments.out / "wav2vec2-base-960h")


if __name__ == "__main__":
    main()
