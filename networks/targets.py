"""Which linear layers a network attaches to: by the class of the block they live in, then by patterns."""

from collections.abc import Sequence
from dataclasses import dataclass
import re

from torch import nn

from common.errors import ConfigError


@dataclass(frozen=True)
class Patterns:
    """Regular expressions that a module's whole dotted path must match.

    A layer is left out when it matches an exclude pattern and no include pattern: include patterns bring back what
    exclude patterns took away, and alone they change nothing (kohya's and musubi-tuner's rule).
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    always_excluded: tuple[str, ...] = ()
    """The network's own exclude patterns, which may match nothing."""


def find_targets(model: nn.Module, block_classes: Sequence[str], patterns: Patterns) -> dict[str, nn.Linear]:
    """{dotted path: layer} of the linears inside modules of the named classes, in the model's order.

    Raises ConfigError for an invalid pattern, one that matches nothing, and when nothing is left.
    """
    candidates = _linears_inside(model, block_classes)
    if not candidates:
        raise ConfigError(f"{type(model).__name__} has no linear layer inside {' or '.join(block_classes)}; "
                          "this network module is for another kind of model.")
    include, exclude, always = (_compile(texts) for texts in (patterns.include, patterns.exclude,
                                                             patterns.always_excluded))
    _refuse_idle("include_patterns", include, list(candidates), block_classes)
    everywhere = [path for path, _ in model.named_modules() if path]
    _refuse_idle("exclude_patterns", exclude, everywhere, block_classes)

    def is_left_out(path: str) -> bool:
        excluded = any(pattern.fullmatch(path) for pattern in exclude + always)
        return excluded and not any(pattern.fullmatch(path) for pattern in include)

    targets = {path: layer for path, layer in candidates.items() if not is_left_out(path)}
    if not targets:
        raise ConfigError(f"exclude_patterns {list(patterns.exclude)} leave none of the {len(candidates)} linear "
                          "layers. Bring some back with include_patterns, for example ['.*self_attn.*'].")
    return targets


def _linears_inside(model: nn.Module, block_classes: Sequence[str]) -> dict[str, nn.Linear]:
    found: dict[str, nn.Linear] = {}
    for path, module in model.named_modules():
        if type(module).__name__ in block_classes:
            for inner, child in module.named_modules(prefix=path):
                if isinstance(child, nn.Linear):
                    found[inner] = child
    return found


def _compile(texts: Sequence[str]) -> list[re.Pattern[str]]:
    compiled = []
    for text in texts:
        try:
            compiled.append(re.compile(text))
        except re.error as error:
            raise ConfigError(f"pattern '{text}' is no regular expression: {error}. Write .* for anything, and \\. for "
                              "a dot.") from error
    return compiled


def _refuse_idle(flag: str, patterns: list[re.Pattern[str]], paths: Sequence[str], classes: Sequence[str]) -> None:
    idle = [pattern.pattern for pattern in patterns if not any(pattern.fullmatch(path) for path in paths)]
    if idle:
        raise ConfigError(f"{flag} '{idle[0]}' matches nothing. A pattern must match a whole path inside "
                          f"{' or '.join(classes)}, such as '{paths[0]}'; begin and end it with .* for a part.")
