"""Random draws that depend on what they are for, and never on how many processes there are."""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """63-bit seed for one draw, from the run's seed, the purpose's name and a position (epoch, index, step …).

    The same arguments give the same seed on every machine, process and Python version.
    """
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """CPU generator seeded by `derive_seed`. Draw on the CPU and move: devices have other streams."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, purpose, *position))
