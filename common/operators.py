"""Functions of ours as operators of torch: compiled graphs hold them whole, and policies know them by name."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "omnituner"


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a function an operator for all devices; `fake` gives its results' shapes and dtypes without numbers.

    `schema` is that of `torch.library.define`, without the name, which is the function's. It must change none of its
    arguments and hand none of them back. Registered directly, because `torch.library.custom_op` takes some 30 µs more
    for each call on the host (measured), and a block makes twenty.
    """
    def register(function: Callable[..., Any]) -> Any:
        name = f"{NAMESPACE}::{function.__name__}"
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "default", function)
        torch.library.register_fake(name, fake)
        return getattr(getattr(torch.ops, NAMESPACE), function.__name__).default

    return register
