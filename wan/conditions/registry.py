"""The table of conditions: name → class."""

from collections.abc import Iterable, Mapping

from common.errors import ConditionError, nearest
from wan.conditions.base import Condition
from wan.conditions.frame_xattn import FrameCrossAttention
from wan.conditions.gated_lite import GatedLite
from wan.conditions.omniavatar_add import OmniAvatarAdd
from wan.conditions.reference_channels import ReferenceChannels
from wan.variants import Variant

CONDITIONS: dict[str, type[Condition]] = {
    "omniavatar_add": OmniAvatarAdd,
    "frame_xattn": FrameCrossAttention,
    "gated_lite": GatedLite,
    "reference_channels": ReferenceChannels,
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


def refuse_mixture(names: Iterable[str]) -> None:
    """ConditionError where two of the conditions would hear the same sound, or both begin from the picture."""
    kinds = [find_condition(name) for name in dict.fromkeys(names)]
    for what, together in (("hear the sound", [kind.name for kind in kinds if "audio" in kind.features]),
                           ("begin from the picture", [kind.name for kind in kinds if kind.starts_from_picture])):
        if len(together) > 1:
            raise ConditionError(f"the conditions {' and '.join(together)} both {what}; a model takes one that does. "
                                 f"Leave out {' or '.join(together)}.")
