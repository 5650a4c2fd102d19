"""Optimisers by name: a table of known ones, every optimiser of torch, and any dotted class."""

import ast
from collections.abc import Mapping, Sequence
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, nearest
from common.logs import get_logger

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

log = get_logger(__name__)

OPTIMIZERS: Mapping[str, str] = {
    "": "torch.optim.AdamW",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "pagedadamw": "bitsandbytes.optim.PagedAdamW",
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "lion": "bitsandbytes.optim.Lion",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
    "adafactor": "transformers.optimization.Adafactor",
    "prodigy": "prodigyopt.Prodigy",
    "adamwschedulefree": "schedulefree.AdamWScheduleFree",
    "radamschedulefree": "schedulefree.RAdamScheduleFree",
    "sgdschedulefree": "schedulefree.SGDScheduleFree",
    "dadaptadam": "dadaptation.DAdaptAdam",
    "dadaptlion": "dadaptation.DAdaptLion",
    "came": "pytorch_optimizer.CAME",
    "stableadamw": "pytorch_optimizer.StableAdamW",
}
"""Names in lower case. Names that are not here are looked up in torch.optim (case does not matter)."""

PACKAGES: Mapping[str, str] = {"pytorch_optimizer": "pytorch-optimizer"}
"""Modules whose package has another name."""

UNSUITABLE: Mapping[str, str] = {
    "lbfgs": "it needs to evaluate the loss several times a step",
    "sparseadam": "it takes sparse gradients only",
}


def import_class(path: str, flag: str) -> type:
    """The class at a dotted path; ConfigError when its package is not installed or has no such name."""
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        package = PACKAGES.get(module_name.split(".")[0], module_name.split(".")[0])
        raise ConfigError(f"{flag} '{path}': cannot import '{module_name}' ({error}). Install it with "
                          f"'pip install {package}', or choose another.") from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"{flag} '{path}': '{module_name}' has no class '{name}'{nearest(name, classes)}.")
    return found


def _torch_optimizers() -> dict[str, str]:
    import torch

    return {name.lower(): f"torch.optim.{name}" for name, value in vars(torch.optim).items()
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
            and value is not torch.optim.Optimizer}


def optimizer_class(name: str) -> "type[Optimizer]":
    """Class of `--optimizer_type`: a name of the table or of torch.optim (case-insensitive), or a dotted path.

    Empty is AdamW. Raises ConfigError naming the nearest known name.
    """
    known = {**_torch_optimizers(), **OPTIMIZERS}
    lower = name.lower()
    if lower.rpartition(".")[2] in UNSUITABLE:
        raise ConfigError(f"optimizer_type '{name}' cannot be used here: {UNSUITABLE[lower.rpartition('.')[2]]}.")
    if lower in known:
        return import_class(known[lower], "optimizer_type")
    if "." in name:
        return import_class(name, "optimizer_type")
    raise ConfigError(f"optimizer_type '{name}' is unknown{nearest(lower, known)}. It is one of "
                      f"{', '.join(sorted(key for key in known if key))}, or a dotted class such as package.Class.")


def _literal(text: str) -> Any:
    """Python literal of `text`; true/false/none in any case; other text stays text."""
    words = {"true": True, "false": False, "none": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text


def parse_arguments(pairs: Sequence[str], target: type, flag: str, *, taken: Sequence[str] = ()) -> dict[str, Any]:
    """Keyword arguments from ``name=value`` texts, checked against the constructor of `target`.

    Values are Python literals. Raises ConfigError for a text without "=", a name in `taken`, or an unknown name.
    """
    parameters = inspect.signature(target).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = [name for name, p in parameters.items() if name not in taken and name != "params"
             and p.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals:
            raise ConfigError(f"{flag} '{pair}' is not of the form name=value.")
        if name in taken:
            raise ConfigError(f"{flag}: '{name}' is set elsewhere (the learning rate by --learning_rate).")
        if name not in known and not takes_any:
            raise ConfigError(f"{flag}: {target.__name__} has no argument '{name}'{nearest(name, known)}. "
                              f"It has {', '.join(known)}.")
        arguments[name] = _literal(text)
    return arguments


def is_schedule_free(optimizer: "Optimizer") -> bool:
    """Whether `optimizer.train()` and `.eval()` must be called around saving and previews."""
    return type(optimizer).__name__.lower().endswith("schedulefree")


def build_optimizer(name: str, groups: Sequence[Mapping[str, Any]], *, learning_rate: float,
                    arguments: Sequence[str] = ()) -> "Optimizer":
    """Optimiser for parameter `groups` (``{"params": […], "lr": …, "name": …}``) with `--optimizer_args` texts.

    Raises ConfigError for an unknown name or argument, a package that is not installed, and for arguments or
    parameters that the optimiser itself refuses.
    """
    kind = optimizer_class(name)
    options = parse_arguments(arguments, kind, "optimizer_args", taken=("lr",))
    own_groups = [dict(group) for group in groups]
    if is_fused_by_default(kind, own_groups, options):
        options["fused"] = True
    if kind.__name__ in ("Prodigy", "DAdaptAdam", "DAdaptLion"):
        _check_one_rate(kind.__name__, own_groups, learning_rate)
    if "relative_step" in inspect.signature(kind).parameters and options.get("relative_step", True):
        return _relative_adafactor(kind, own_groups, learning_rate, options)
    try:
        return kind(own_groups, lr=learning_rate, **options)  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer_type '{kind.__name__}' refuses its settings: {error}") from error


FUSED = ("Adam", "AdamW", "SGD")
"""Optimisers of torch that have one kernel for a step of many parameters on CUDA; rounding differs from their loops."""


def is_fused_by_default(kind: type, groups: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> bool:
    """Whether `fused=True` is set: on CUDA, where --optimizer_args say nothing of how the step is computed.

    A saved state brings its own choice along, so that a run goes on with the kernels that it began with.
    """
    is_known = kind.__name__ in FUSED and kind.__module__.startswith("torch.optim.")
    says = {"fused", "foreach", "capturable", "differentiable"} & options.keys()
    return is_known and not says and all(one.is_cuda for group in groups for one in group["params"])


def step_unless(optimizer: "Optimizer", refused: "Tensor") -> bool:
    """Queue a step that the device leaves out where `refused` is 1; False, and no step, where it cannot do that.

    torch's fused Adam and AdamW can, as its GradScaler has them do: with 1 they leave weights, averages and their count
    of steps alone, with 0 nothing is different. So their host work is done while the device still computes. Not on
    MPS, whose kernels are not told of the number and take every step; other devices are unknown.
    """
    kind = type(optimizer)
    is_known = kind.__name__ in ("Adam", "AdamW") and kind.__module__.startswith("torch.optim.")
    if not is_known or refused.device.type not in ("cuda", "cpu") or not all(
            group.get("fused") for group in optimizer.param_groups):
        return False
    optimizer.found_inf = refused  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]
    return True


def _relative_adafactor(kind: type, groups: list[dict[str, Any]], learning_rate: float,
                        options: dict[str, Any]) -> "Optimizer":
    log.info("Adafactor chooses its own step (relative_step=True): the learning rate %g and its schedule have no "
             "effect. To use them: --optimizer_args relative_step=False scale_parameter=False warmup_init=False.",
             learning_rate)
    for group in groups:
        group["lr"] = None  # the constructor refuses a rate beside relative_step
    optimizer: Optimizer = kind(groups, lr=None, **options)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate  # a number for schedulers to multiply; it is not read
    return optimizer


def _check_one_rate(name: str, groups: list[dict[str, Any]], learning_rate: float) -> None:
    rates = {group.get("lr", learning_rate) for group in groups}
    if len(rates) > 1:
        raise ConfigError(f"{name} finds one learning rate for all parameters; it cannot work with loraplus_lr_ratio, "
                          "lr_patterns, condition_lr or patch_lr. Leave them out.")
    if max(rates) < 0.1:
        log.warning("%s estimates the learning rate itself and expects --learning_rate 1.0; it is %g, which makes "
                    "every step that much smaller.", name, max(rates))


def current_rates(optimizer: "Optimizer") -> dict[str, float]:
    """Learning rate in effect of each named group, for logs: d*lr where the optimiser estimates d."""
    rates: dict[str, float] = {}
    for index, group in enumerate(optimizer.param_groups):
        rate = float(group["lr"])
        if "d" in group:
            rate *= float(group["d"])
        rates[str(group.get("name", index))] = rate
    return rates
