"""The table of conditions: name → class."""

from collections.abc import Mapping

from common.errors import ConditionError, nearest
from wan.conditions.base import Condition
from wan.conditions.omniavatar_add import OmniAvatarAdd
from wan.variants import Variant

CONDITIONS: dict[str, type[Condition]] = {
    "omniavatar_add": OmniAvatarAdd,
}


def find_condition(name: str) -> type[Condition]:
    """Class by name; ConditionError names the nearest."""
    if name not in CONDITIONS:
        raise ConditionError(f"condition '{name}' is unknown{nearest(name, CONDITIONS)}. "
                             f"Known: {', '.join(CONDITIONS)}.")
    return CONDITIONS[name]


def build_condition(name: str, settings: Mapping[str, str], variant: Variant) -> Condition:
    """Fresh condition for a model from settings as text (flags, file metadata); ConditionError on a bad one."""
    kind = find_condition(name)
    return kind(kind.parse_settings(settings), variant)
