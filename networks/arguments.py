"""`--network_args` that every network module understands: dropouts, chosen layers, ranks and rates by pattern."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields
import math
import re
from typing import Self
import warnings

from common.errors import ConfigError, nearest
from networks.base import requested_conditions
from networks.network import OwnRates

ByPattern = tuple[tuple[str, float], ...]
"""(regular expression, number) of layers in whose path it is found; the first that is decides."""


@dataclass(frozen=True)
class NetworkArguments:
    """`--network_args` of all network modules."""

    rank_dropout: float = 0.0
    """Share of ranks left out, a sample each."""
    module_dropout: float = 0.0
    """Chance that a layer's addition is left out in a step."""
    loraplus_lr_ratio: float | None = None
    """LoRA+: the up matrices learn at this multiple of the rate."""
    include_patterns: tuple[str, ...] = ()
    """Regular expressions that bring back layers that exclude patterns took away."""
    exclude_patterns: tuple[str, ...] = ()
    """Regular expressions of layers to leave out; ['.*'] leaves only what include_patterns bring back."""
    verbose: bool = False
    """List every layer."""
    condition_lr: float | None = None
    """Learning rate of the conditions, where it shall not be that of the LoRA."""
    patch_lr: float | None = None
    """Learning rate of the conditions' patch embeddings, where it shall not be that of the conditions."""
    rank_patterns: ByPattern = ()
    """Ranks of layers that shall not have --network_dim."""
    alpha_patterns: ByPattern = ()
    """Alphas of layers that shall not have --network_alpha."""
    lr_patterns: ByPattern = ()
    """Learning rates of layers that shall not have --learning_rate."""

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> Self:
        """From texts; ConfigError for an unknown name or a wrong value. Arguments of conditions are passed over."""
        requested_conditions(arguments)
        known = [field.name for field in fields(cls)]
        values: dict[str, object] = {}
        for name, text in arguments.items():
            if name == "conditions" or "." in name:
                continue
            if name in ("conv_dim", "conv_alpha"):
                raise ConfigError(f"network_args: '{name}' has nothing to act on: a Wan block has no convolutions. "
                                  "Leave it out.")
            if name not in known:
                raise ConfigError(f"network_args: unknown '{name}'{nearest(name, [*known, 'conditions'])}. "
                                  f"Known: {', '.join(known)}, conditions.")
            values[name] = cls.value(name, text)
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def value(cls, name: str, text: str) -> object:
        """The value of one argument; ConfigError says what it should be."""
        if name in ("rank_patterns", "alpha_patterns", "lr_patterns"):
            return _by_pattern(name, text)
        if name.endswith("_patterns"):
            return _patterns(name, text)
        if name == "verbose":
            return is_yes(text)
        number = a_number(name, text)
        if name.endswith("dropout") and not 0 <= number < 1:
            raise ConfigError(f"network_args: {name} = {text}; it is a share, 0 or more and below 1.")
        if name == "loraplus_lr_ratio" and number <= 0:
            raise ConfigError(f"network_args: {name} = {text}; it must be above 0 (1 changes nothing).")
        if name in ("condition_lr", "patch_lr") and not 0 < number < math.inf:
            raise ConfigError(f"network_args: {name} = {text}; it is a learning rate, above 0 (such as 1e-3).")
        return number

    @property
    def rates(self) -> OwnRates:
        """Learning rates that differ from the network's."""
        return OwnRates(self.loraplus_lr_ratio, self.condition_lr, self.patch_lr, self.lr_patterns)


def a_number(name: str, text: str) -> float:
    """`text` as a number; ConfigError names the argument."""
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"network_args: {name} = '{text}' is no number.") from error


def is_yes(text: str) -> bool:
    """Whether a text says yes, as kohya reads it."""
    return text.lower() in ("1", "true", "yes")


def _literal(text: str) -> object:
    """A Python literal. Python warns of `\\.` in plain quotes, and reads it as a regular expression means it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(text)


def _patterns(name: str, text: str) -> tuple[str, ...]:
    """A Python list of texts, or one bare pattern."""
    if not text.startswith(("[", "(", "'", '"')):
        return (text,)
    try:
        found = _literal(text)
    except (ValueError, SyntaxError):
        if not text.startswith("["):
            return (text,)  # a bare pattern that begins with a bracket
        raise ConfigError(f"network_args: {name} = {text} is no list. Write {name}=['.*self_attn.*', '.*ffn.*']."
                          ) from None
    found = (found,) if isinstance(found, str) else found
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"network_args: {name} = {text} must hold texts in quotes.")
    return tuple(found)


def _by_pattern(name: str, text: str) -> ByPattern:
    """A Python dict from texts to numbers above 0, in its order; whole numbers for ranks."""
    example = {"rank_patterns": "{'ffn': 16, 'self_attn': 64}", "alpha_patterns": "{'ffn': 8}",
               "lr_patterns": "{'ffn': 5e-5}"}[name]
    try:
        found = _literal(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict) or not found or not all(isinstance(pattern, str) for pattern in found):
        raise ConfigError(f"network_args: {name} = {text} is no dict of regular expressions and numbers. Write "
                          f"{name}=\"{example}\".")
    for pattern, number in found.items():
        kinds = (int,) if name == "rank_patterns" else (int, float)
        if isinstance(number, bool) or not isinstance(number, kinds) or not 0 < number < math.inf:
            what = "a rank is a whole number, 1 or more" if name == "rank_patterns" else "a number above 0 is expected"
            raise ConfigError(f"network_args: {name}: '{pattern}' has {number!r}; {what}.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"network_args: {name}: '{pattern}' is no regular expression: {error}. Write \\. for a "
                              "dot.") from error
    return tuple(found.items())
