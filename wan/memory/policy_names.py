"""Names of activation policies, and the text that gives one to each block; imports no torch, for the sake of flags."""

from collections.abc import Iterator
from typing import Literal, get_args

from common.errors import nearest

Policy = Literal["none", "matmuls", "attention", "full"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


def policy_problems(text: str, blocks: int | None = None) -> Iterator[str]:
    """Sentences for what is wrong with ``full`` or ``matmuls:15,attention``; `blocks` where the model is known."""
    parts = [part.strip() for part in text.split(",")]
    named = 0
    for number, part in enumerate(parts):
        name, colon, count = part.partition(":")
        if name not in POLICIES:
            yield (f"activation policy '{name}' is unknown{nearest(name, POLICIES)}. It is one of "
                   f"{', '.join(POLICIES)}.")
        if colon and not count.isdigit():
            yield f"activation policy '{part}': '{count}' is no number of blocks."
        if not colon and number < len(parts) - 1:
            yield (f"activation policy '{text}': '{part}' needs a number of blocks, such as {part}:10; only the last "
                   "one takes what is left.")
        named += int(count) if count.isdigit() else 0
    takes_rest = ":" not in parts[-1]
    if blocks is not None and (named > blocks or (named < blocks and not takes_rest)):
        yield f"activation policy '{text}' names {named} blocks; the model has {blocks}."


def policies_of(text: str, blocks: int) -> list[Policy]:
    """A policy for each of `blocks`, from text without problems."""
    found: list[Policy] = []
    for part in text.split(","):
        name, _, count = part.strip().partition(":")
        found += [name] * (int(count) if count else blocks - len(found))  # type: ignore[list-item]
    return found
