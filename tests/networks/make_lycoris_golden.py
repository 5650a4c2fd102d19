"""Writes tests/data/lycoris.safetensors with lycoris-lora 4.1.3: `python -m tests.networks.make_lycoris_golden`.

The library is no dependency; install it apart (`pip install --no-deps --target FOLDER lycoris-lora==4.1.3 toml`, and
FOLDER on PYTHONPATH). Cases: `<case>/<key of a kohya file>`, `<case>/delta` = what the library's forward adds, as a
weight, and `<case>/merged` = its merged weight; `weight`; `sizes` rows (size, factor, small, large).
"""

from pathlib import Path

from safetensors.torch import save_file
import torch

INPUTS, OUTPUTS, NAME = 24, 40, "lora_unet_blocks_0_ffn_0"
SIZES = (24, 40, 127, 128, 250, 360, 512, 1536, 5120, 8960, 13824)
FACTORS = (-1, 2, 4, 8, 16, 32)


def main() -> None:
    """Make and write the file."""
    from lycoris.functional import factorization
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    torch.manual_seed(7)
    base = torch.nn.Linear(INPUTS, OUTPUTS)
    cases = {
        "locon": (LoConModule, {"lora_dim": 4, "alpha": 2}),
        "dora rows": (LoConModule, {"lora_dim": 4, "alpha": 2, "weight_decompose": True}),
        "dora columns": (LoConModule, {"lora_dim": 4, "alpha": 2, "weight_decompose": True, "wd_on_out": False}),
        "loha": (LohaModule, {"lora_dim": 4, "alpha": 1}),
        "loha with dora": (LohaModule, {"lora_dim": 4, "alpha": 4, "weight_decompose": True}),
        "lokr": (LokrModule, {"lora_dim": 2, "alpha": 1}),
        "lokr both": (LokrModule, {"lora_dim": 1, "alpha": 3, "decompose_both": True}),
        "lokr factor": (LokrModule, {"lora_dim": 2, "alpha": 1, "factor": 4}),
        "lokr whole": (LokrModule, {"lora_dim": 2, "alpha": 1, "full_matrix": True}),
        "lokr with dora": (LokrModule, {"lora_dim": 2, "alpha": 2, "weight_decompose": True}),
    }
    tensors = {"weight": base.weight.detach().clone(), "sizes": torch.tensor(
        [(size, factor, *factorization(size, factor)) for size in SIZES for factor in FACTORS])}
    for case, (kind, options) in cases.items():
        module = kind(NAME, base, **options)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
            rows = torch.eye(INPUTS)
            tensors[f"{case}/delta"] = (module(rows) - base(rows)).T.contiguous()
            tensors[f"{case}/merged"] = module.get_merged_weight()[0].clone()
            for key, tensor in module.state_dict().items():
                tensors[f"{case}/{NAME}.{key}"] = tensor.detach().clone()
    save_file(tensors, Path(__file__).parents[1] / "data" / "lycoris.safetensors",
              {"made_by": "lycoris-lora 4.1.3", "torch": torch.__version__})


if __name__ == "__main__":
    main()
