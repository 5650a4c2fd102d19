"""Write a trained audio condition in the form of the project whose design it is, for that project's own scripts.

    python tools/export_network.py trained.safetensors --dit wan2.1_t2v_1.3B.safetensors --output pytorch_model.pt

`omniavatar_add` becomes an OmniAvatar file (.pt or .safetensors, and its config.json beside it), with the widened
patch embedding written whole: our file holds the difference to the base's, so the base is needed, the very one that
was trained on. `frame_xattn` becomes a MultiTalk/InfiniteTalk file.
"""

import argparse
import json
from pathlib import Path
import sys
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import run  # noqa: E402

DTYPES = ("bfloat16", "float16", "float32")
SUFFIXES = (".pt", ".safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Read, convert, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="network file with a condition, or a file of another project")
    parser.add_argument("--dit", type=Path, required=True, help="the base that it was trained on")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .pt or .safetensors")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="dtype of the tensors; default: bfloat16, "
                                                                            "as OmniAvatar's files")
    given = parser.parse_args(arguments)

    from common.dtypes import parse_dtype
    from common.errors import ConfigError
    from networks.formats import read_lora
    from networks.publish import publish
    from wan.weights.dit import inspect_dit, read_parameters

    if given.output.suffix not in SUFFIXES:
        raise ConfigError(f"--output {given.output}: a file of another project ends in {' or '.join(SUFFIXES)}.")
    paths = [name.rpartition(".")[0] for name in inspect_dit(given.dit).empty().state_dict()]
    publication = publish(read_lora(given.network), dict.fromkeys(paths),
                          lambda name: read_parameters(given.dit, [name])[name], parse_dtype(given.dtype))
    write(given.output, publication.tensors)
    if publication.config:
        from common.atomic import write_text
        write_text(given.output.with_name("config.json"), json.dumps(publication.config, indent=2) + "\n")
    print(f"{given.output}: {publication.form.layout}, {len(publication.tensors)} tensors, "
          f"{sum(tensor.numel() for tensor in publication.tensors.values()):,} parameters")
    return 0


def write(path: Path, tensors: Any) -> None:
    """A plain mapping of names to tensors, as safetensors or as a pickle of tensors alone."""
    import torch

    from common.atomic import atomic_path
    from common.tensorfile import save_tensors

    if path.suffix == ".safetensors":
        save_tensors(path, tensors, {})
        return
    with atomic_path(path) as temporary:
        torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)


if __name__ == "__main__":
    run(main)
