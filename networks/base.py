"""Network modules by name (`--network_module networks.lora_wan`) and the arguments that all of them understand."""

from collections.abc import Mapping, Sequence
import importlib
from types import ModuleType

from common.errors import ConfigError, nearest

NETWORK_MODULES = ("networks.lora_wan", "networks.lycoris_wan")
"""Each has `create_network` (a `networks.network.Network`), `check_arguments` and `plan`."""
OTHER_SPELLINGS = {"networks.loha": "algo=loha", "networks.lokr": "algo=lokr", "lycoris.kohya": "algo=loha|lokr|dora"}
"""musubi-tuner's names, and what to add to `networks.lycoris_wan` for the same."""


def network_module(name: str) -> ModuleType:
    """The module that makes networks. ConfigError names the nearest known one."""
    if name in OTHER_SPELLINGS:
        raise ConfigError(f"network_module '{name}' is here --network_module networks.lycoris_wan --network_args "
                          f"{OTHER_SPELLINGS[name]}.")
    if name not in NETWORK_MODULES:
        raise ConfigError(f"network_module '{name}' is unknown{nearest(name, (*NETWORK_MODULES, *OTHER_SPELLINGS))}. "
                          f"Use {' or '.join(NETWORK_MODULES)}.")
    return importlib.import_module(name)


def split_network_args(pairs: Sequence[str]) -> dict[str, str]:
    """{name: text} of ``--network_args name=value …``; a value may hold "=" itself. ConfigError lists bad pairs."""
    arguments: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"network_args '{pair}' is not of the form name=value.")
        if name in arguments:
            raise ConfigError(f"network_args: '{name}' is given twice.")
        arguments[name] = value.strip()
    return arguments


def requested_conditions(arguments: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """{condition: its settings as text} of ``conditions=a,b`` and ``a.setting=value``; empty without `conditions`.

    Raises ConfigError for a setting of a condition that is not asked for.
    """
    names = [name.strip() for name in arguments.get("conditions", "").split(",") if name.strip()]
    conditions: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in arguments.items():
        owner, dot, setting = key.partition(".")
        if not dot:
            continue
        if owner not in conditions:
            raise ConfigError(f"network_args: '{key}' belongs to a condition '{owner}' that is not asked for"
                              f"{nearest(owner, conditions)}. Add conditions={','.join([*conditions, owner])}.")
        conditions[owner][setting] = value
    return conditions
