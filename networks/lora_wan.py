"""LoRA for Wan: which layers, which arguments. The network module that `--network_module networks.lora_wan` names."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields
import math

from torch import nn

from common.errors import ConfigError, nearest
from common.logs import get_logger
from networks.attach import network_from_sizes, sizes_in_file
from networks.base import requested_conditions
from networks.formats import LoraFile
from networks.layer import Dropouts
from networks.lora import LoraNetwork, OwnRates
from networks.targets import Patterns, find_targets

log = get_logger(__name__)

BLOCK_CLASSES = ("WanAttentionBlock",)
ALWAYS_EXCLUDED = (r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",)
DEFAULT_DIM = 4
"""Rank where none is given, as in musubi-tuner."""


@dataclass(frozen=True)
class LoraArguments:
    """`--network_args` of this module."""

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

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> "LoraArguments":
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
            values[name] = _value(name, text)
        return cls(**values)  # type: ignore[arg-type]


def _value(name: str, text: str) -> object:
    if name.endswith("_patterns"):
        return _patterns(name, text)
    if name == "verbose":
        return text.lower() in ("1", "true", "yes")
    try:
        number = float(text)
    except ValueError as error:
        raise ConfigError(f"network_args: {name} = '{text}' is no number.") from error
    if name.endswith("dropout") and not 0 <= number < 1:
        raise ConfigError(f"network_args: {name} = {text}; it is a share, 0 or more and below 1.")
    if name == "loraplus_lr_ratio" and number <= 0:
        raise ConfigError(f"network_args: {name} = {text}; it must be above 0 (1 changes nothing).")
    if name in ("condition_lr", "patch_lr") and not 0 < number < math.inf:
        raise ConfigError(f"network_args: {name} = {text}; it is a learning rate, above 0 (such as 1e-3).")
    return number


def _patterns(name: str, text: str) -> tuple[str, ...]:
    """A Python list of texts, or one bare pattern."""
    if not text.startswith(("[", "(", "'", '"')):
        return (text,)
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if not text.startswith("["):
            return (text,)  # a bare pattern that begins with a bracket
        raise ConfigError(f"network_args: {name} = {text} is no list. Write {name}=['.*self_attn.*', '.*ffn.*']."
                          ) from None
    found = (found,) if isinstance(found, str) else found
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, str) for one in found):
        raise ConfigError(f"network_args: {name} = {text} must hold texts in quotes.")
    return tuple(found)


def create_network(model: nn.Module, *, dim: int | None = None, alpha: float = 1.0, dropout: float | None = None,
                   args: Mapping[str, str] | None = None, conditions: Mapping[str, nn.Module] | None = None,
                   sizes_from: LoraFile | None = None, seed: int = 0) -> LoraNetwork:
    """A fresh LoRA on the linears of the model's blocks; call `.attach()` to let it act.

    `dim` is the rank (default 4), alpha 0 means alpha = rank. `args` are the texts of `--network_args`
    (`networks.base.split_network_args`); `conditions` the modules that are trained whole and saved beside the LoRA.
    `sizes_from` takes layers, ranks and alphas from a file (`--dim_from_weights`); load the file afterwards.
    Raises ConfigError for wrong arguments or patterns.
    """
    arguments = LoraArguments.parse(args or {})
    dropouts = Dropouts(dropout or 0.0, arguments.rank_dropout, arguments.module_dropout)
    if sizes_from is not None:
        sizes = sizes_in_file(model, sizes_from)
    else:
        rank = DEFAULT_DIM if dim is None else dim
        if rank < 1:
            raise ConfigError(f"network_dim {rank}: the rank must be 1 or more.")
        sizes = dict.fromkeys(_chosen(model, arguments), (rank, alpha or float(rank)))
    rates = OwnRates(arguments.loraplus_lr_ratio, arguments.condition_lr, arguments.patch_lr)
    network = network_from_sizes(model, sizes, dropouts=dropouts, rates=rates, conditions=dict(conditions or {}))
    network.reset(seed)
    return network


def check_arguments(model: nn.Module, args: Mapping[str, str]) -> None:
    """Refuse arguments and patterns that `create_network` would refuse; `model` may be on the meta device."""
    arguments = LoraArguments.parse(args)
    patterns = Patterns(arguments.include_patterns, arguments.exclude_patterns, ALWAYS_EXCLUDED)
    find_targets(model, BLOCK_CLASSES, patterns)


def _chosen(model: nn.Module, arguments: LoraArguments) -> list[str]:
    if arguments.include_patterns and not arguments.exclude_patterns:
        log.warning("include_patterns only bring back what exclude_patterns took away; alone they change nothing. To "
                    "train just the included layers, add exclude_patterns=['.*'].")
    patterns = Patterns(arguments.include_patterns, arguments.exclude_patterns, ALWAYS_EXCLUDED)
    paths = list(find_targets(model, BLOCK_CLASSES, patterns))
    log.info("LoRA on %d linear layers.", len(paths))
    if arguments.verbose:
        log.info("%s", "\n".join(paths))
    return paths
