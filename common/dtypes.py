"""Names of torch dtypes as users write them."""

import torch

from common.errors import ConfigError

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "float": torch.float32, "no": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16, "half": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn, "fp8": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}


def parse_dtype(name: str) -> torch.dtype:
    """torch dtype for a user's name such as ``bf16`` or ``float32``; ConfigError names the known ones."""
    if name.lower() not in DTYPES:
        raise ConfigError(f"unknown dtype '{name}'. Use one of {', '.join(DTYPES)}.")
    return DTYPES[name.lower()]


def dtype_name(dtype: torch.dtype) -> str:
    """torch's own name without the module, for example ``bfloat16``."""
    return str(dtype).removeprefix("torch.")
