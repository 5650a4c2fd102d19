"""A model's linears in 8-bit floating point, and where products in it can be had."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

from common.errors import ConfigError
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_compute import kind_of

FIRST_CAPABILITY_WITH_FP8 = (8, 9)
STORED = Fp8Settings()


def use_fp8_linears(model: nn.Module, settings: Fp8Settings = STORED, within: str = "blocks") -> list[str]:
    """Replace the linears under `model.<within>` by empty `Fp8Linear`s; return their names. Load weights afterwards."""
    names = [name for name, module in model.get_submodule(within).named_modules(prefix=within)
             if type(module) is nn.Linear]
    for name in names:
        old = model.get_submodule(name)
        kind = kind_of(name, old) if settings.computes else Fp8Linear
        model.set_submodule(name, kind(old.in_features, old.out_features, old.bias is not None, settings))
    return names


_EVERYWHERE = ContextVar("fp8 products on every device", default=False)


@contextmanager
def fp8_products_everywhere() -> Iterator[None]:
    """Inside, products in fp8 may be asked of devices without units for them: torch forms them on the CPU too, slower
    than in 16 bits. For looking at what they do to learning where there is no such GPU; nothing else is gained.
    """
    token = _EVERYWHERE.set(True)
    try:
        yield
    finally:
        _EVERYWHERE.reset(token)


def require_fp8_compute(device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> None:
    """ConfigError where products in fp8 are asked of a device that has no units for them. Storage works anywhere.

    `dtype` is what the rest of the model computes in: with scales for each row the units give bfloat16 only.
    """
    if _EVERYWHERE.get():
        return
    device = torch.device(device)
    if device.type != "cuda":
        raise ConfigError(f"fp8 compute was asked, but the device is '{device.type}', which has no fp8 units. "
                          "Leave fp8 compute out; storing weights in fp8 works on every device.")
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY_WITH_FP8:
        name, found = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise ConfigError(f"fp8 compute was asked, but {name} has compute capability {found}; fp8 units came with 8.9 "
                          "(GeForce RTX 40, L40, H100). Leave fp8 compute out; storing weights in fp8 works here too.")
    if dtype != torch.bfloat16:
        raise ConfigError(f"fp8 compute was asked, and the model is to run in {str(dtype).removeprefix('torch.')}; the "
                          "units give bfloat16. Use bfloat16, or leave fp8 compute out; storing weights in fp8 works.")
