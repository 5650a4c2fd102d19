"""Which linear layers of a Wan DiT a network acts on, and the rank and alpha of each."""

from collections.abc import Iterable
from dataclasses import dataclass
import re

from torch import nn

from common.errors import ConfigError, nearest
from common.logs import get_logger
from networks.arguments import ByPattern, NetworkArguments
from networks.targets import Patterns, find_targets

log = get_logger(__name__)

BLOCK_CLASSES = ("WanAttentionBlock",)
ALWAYS_EXCLUDED = (r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*",)
DEFAULT_DIM = 4
"""Rank where none is given, as in musubi-tuner."""


@dataclass(frozen=True)
class Planned:
    """What a network will be, known before any weights are read."""

    kind: str
    """Of its layers (`networks.layer.Layer.kind`)."""
    ranks: dict[str, int]
    """By path."""


def chosen_targets(model: nn.Module, arguments: NetworkArguments) -> dict[str, nn.Linear]:
    """{path: layer} that include and exclude patterns leave; `model` may be on the meta device.

    ConfigError for a pattern that matches nothing, those with ranks, alphas and rates too.
    """
    patterns = Patterns(arguments.include_patterns, arguments.exclude_patterns, ALWAYS_EXCLUDED)
    targets = find_targets(model, BLOCK_CLASSES, patterns)
    for name in ("rank_patterns", "alpha_patterns", "lr_patterns"):
        _refuse_idle(name, getattr(arguments, name), [*targets])
    return targets


def chosen_sizes(paths: Iterable[str], arguments: NetworkArguments, dim: int | None, alpha: float
                 ) -> dict[str, tuple[int, float]]:
    """{path: (rank, alpha)}: by the first pattern that is found in the path, else `dim` (default 4) and `alpha`.

    Alpha 0 means the layer's rank. An alpha is not moved by a rank's pattern: alpha / rank is the strength.
    """
    rank = DEFAULT_DIM if dim is None else dim
    if rank < 1:
        raise ConfigError(f"network_dim {rank}: the rank must be 1 or more.")
    sizes = {}
    for path in paths:
        own = int(first_match(arguments.rank_patterns, path, rank))
        sizes[path] = own, first_match(arguments.alpha_patterns, path, alpha or float(own))
    return sizes


def first_match(patterns: ByPattern, path: str, default: float) -> float:
    """Number of the first pattern that is found in `path`, else `default`."""
    return next((number for pattern, number in patterns if re.search(pattern, path)), default)


def tell_targets(paths: Iterable[str], arguments: NetworkArguments, kind: str) -> None:
    """Say how many layers there are, which with `verbose`, and that include patterns alone change nothing."""
    paths = list(paths)
    if arguments.include_patterns and not arguments.exclude_patterns:
        log.warning("include_patterns only bring back what exclude_patterns took away; alone they change nothing. To "
                    "train just the included layers, add exclude_patterns=['.*'].")
    log.info("%s on %d linear layers.", kind, len(paths))
    if arguments.verbose:
        log.info("%s", "\n".join(paths))


def _refuse_idle(name: str, patterns: ByPattern, paths: list[str]) -> None:
    """ConfigError for a pattern that decides nothing: found in no path, or only where an earlier one decides."""
    left = paths
    for pattern, _ in patterns:
        taken = [path for path in left if re.search(pattern, path)]
        if not taken and any(re.search(pattern, path) for path in paths):
            raise ConfigError(f"network_args: {name}: '{pattern}' decides nothing, because patterns before it are "
                              "found in all of its layers. The first match counts; put the narrower pattern first.")
        if not taken:
            parts = {part for path in paths for part in (path, *path.split("."), ".".join(path.split(".")[2:]))}
            raise ConfigError(f"network_args: {name}: '{pattern}' is found in none of the {len(paths)} trained "
                              f"layers{nearest(pattern, sorted(parts))}. They are called as '{paths[0]}'.")
        left = [path for path in left if path not in taken]
