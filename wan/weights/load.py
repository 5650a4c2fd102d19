"""Filling a model that was built on the meta device, one tensor at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from common.errors import WeightsError
from wan.memory.fp8 import Fp8Linear, Quantised, dequantise
from wan.weights.source import WeightsSource

Model = TypeVar("Model", bound=nn.Module)
Transform = Callable[[str, Tensor], Tensor]
"""(name in the model, tensor on the target device in its stored dtype) → the tensor to use, for example with a LoRA
merged in. fp8 weights arrive as float32. Called once a tensor, before the cast."""

LISTED = 6


@dataclass(frozen=True)
class Adapted:
    """A model's tensor that is made from a stored one: `change(stored)`, for example a third of its rows."""

    key: str
    change: Callable[[Tensor], Tensor]


KeyMap = Mapping[str, str | Adapted]
"""{name in the model: where it comes from in the source}."""


@dataclass(frozen=True)
class _Step:
    name: str
    source_key: str
    change: Callable[[Tensor], Tensor] | None


def load_into(model: Model, source: WeightsSource, key_map: KeyMap | None = None, *, dtype: torch.dtype | None = None,
              device: torch.device | str = "cpu", transform: Transform | None = None,
              ignored: Callable[[str], bool] = lambda key: False,
              stays_on_cpu: Callable[[str], bool] = lambda name: False) -> Model:
    """Read every parameter and stored buffer of `model` from `source`, in the order of the file.

    Each tensor goes alone through device → `transform` → `dtype` (None: as stored) or fp8, so that host memory holds
    one tensor beside the model. Parameters come back frozen, the model in eval mode. `key_map` defaults to equal names.
    Source names for which `ignored` is true may be left over. Tensors whose name in the model `stays_on_cpu` go back to
    host memory after their transform. On the device `meta` the fit is checked and nothing read.

    Raises WeightsError, before anything is read, that lists missing, unexpected and misshapen tensors.
    """
    steps = plan(model, source, key_map, ignored)
    if torch.device(device).type == "meta":
        return model
    empties = list(model.parameters())  # kept alive, since `loaded` knows them by id
    loaded: dict[int, nn.Parameter] = {}  # tied parameters stay one tensor
    for step in steps:
        owner, name = _owner(model, step.name)
        empty = getattr(owner, name)
        if id(empty) in loaded:
            setattr(owner, name, loaded[id(empty)])
            continue
        stores_fp8 = isinstance(owner, Fp8Linear) and name == "weight"
        value = _read(source, step, torch.device(device), transform, stores_fp8)
        home = torch.device("cpu") if stays_on_cpu(step.name) else torch.device(device)
        if stores_fp8:
            owner.store(value, dtype)
            owner.weight, owner.scale_weight = nn.Parameter(owner.weight.to(home), False), owner.scale_weight.to(home)
            continue
        value = _own(value, dtype).to(home)
        if isinstance(empty, nn.Parameter):
            value = loaded[id(empty)] = nn.Parameter(value, requires_grad=False)
        setattr(owner, name, value)
    del empties
    _finish(model, torch.device(device), stays_on_cpu)
    return model


def plan(model: nn.Module, source: WeightsSource, key_map: KeyMap | None,
         ignored: Callable[[str], bool]) -> list[_Step]:
    """What to read, in storage order. WeightsError when model and file do not fit one to one."""
    wanted = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if not _is_scale(model, name)}
    origins = {name: (key_map or {}).get(name, name) for name in wanted}
    steps, missing, misshapen = [], [], []
    for name, origin in origins.items():
        step = _Step(name, origin.key, origin.change) if isinstance(origin, Adapted) else _Step(name, origin, None)
        if step.source_key not in source:
            missing.append(step.source_key)
            continue
        found = source.shape(step.source_key)
        if step.change is not None:
            found = tuple(step.change(torch.empty(found, device="meta")).shape)
        if found != tuple(wanted[name].shape):
            misshapen.append(f"{step.source_key} {list(found)} instead of {list(wanted[name].shape)}")
        steps.append(step)
    used = {step.source_key for step in steps}
    unexpected = [key for key in source if key not in used and not ignored(key)]
    if missing or unexpected or misshapen:
        raise WeightsError(mismatch(source, type(model).__name__, missing, unexpected, misshapen))
    order = {key: position for position, key in enumerate(source)}
    return sorted(steps, key=lambda step: order[step.source_key])


def mismatch(source: WeightsSource, what: str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """The message for a file that fits only in part, with up to six names of each kind."""
    parts = [f"{len(names)} {kind}: {', '.join(names[:LISTED])}{', …' if len(names) > LISTED else ''}"
             for kind, names in (("missing", list(dict.fromkeys(missing))), ("unexpected", unexpected),
                                 ("of another shape", misshapen)) if names]
    return (f"{source.path}: does not fit {what}; of its {len(source)} tensors and the model's:\n  - "
            + "\n  - ".join(parts) + "\nThe file is incomplete or of another model. Download it again, or give the "
            "right one.")


def _is_scale(model: nn.Module, name: str) -> bool:
    owner, _, last = name.rpartition(".")
    return last == "scale_weight" and isinstance(model.get_submodule(owner), Fp8Linear)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, last = name.rpartition(".")
    return model.get_submodule(owner), last


def _read(source: WeightsSource, step: _Step, device: torch.device, transform: Transform | None,
          stores_fp8: bool) -> Tensor | Quantised:
    kept = source.quantised(step.source_key) if stores_fp8 and step.change is None else None
    if kept is not None:
        kept = Quantised(kept.values.to(device), kept.scale.to(device))
        if transform is None:
            return kept
        tensor = dequantise(kept, torch.float32)
    else:
        tensor = source.tensor(step.source_key)
        tensor = (tensor if step.change is None else step.change(tensor)).to(device)
    if transform is None:
        return tensor
    version = tensor._version  # a merge may write in place
    changed = transform(step.name, tensor)
    if changed.shape != tensor.shape:
        raise WeightsError(f"the transform of '{step.name}' changed its shape from {list(tensor.shape)} to "
                           f"{list(changed.shape)}.")
    is_untouched = changed is tensor and tensor._version == version
    return kept if kept is not None and is_untouched else changed


def _own(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`tensor` cast, contiguous, and not a small view that keeps a large storage alive."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _finish(model: nn.Module, device: torch.device, stays_on_cpu: Callable[[str], bool]) -> None:
    for name, parameter in model.named_parameters():
        assert not parameter.is_meta, f"{name} was left empty"
        parameter.requires_grad_(False)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            assert not buffer.is_meta, f"{type(module).__name__}.{name} is in no file: make it real before loading"
            setattr(module, name, buffer.to("cpu" if stays_on_cpu(f"{path}.{name}") else device))
    model.eval()
