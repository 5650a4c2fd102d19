"""Averages of one run's checkpoints: a moving average of the weights that is made afterwards (post-hoc EMA).

Each checkpoint gets a share; a tensor of the result is the sum of share * tensor, in float64. Sources: the moving
average musubi-tuner's `lora_post_hoc_ema.py` makes; Karras et al. 2023 (arXiv 2312.02696), Algorithm 2, for the
power-function profile.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError, NetworkFileError, UserError, raise_all
from common.tensorfile import read_header

LARGEST_SIGMA_REL = 12**-0.5
"""The width of a flat profile, which weighs every step alike."""
METADATA_KEY = "omnituner.averaged"

_SAME_RUN = {"ss_session_id": "run (ss_session_id)"}
_SAME_NETWORK = {"ss_network_module": "network module", "ss_network_dim": "rank", "ss_network_alpha": "alpha",
                 "ss_base_model_version": "base", "omnituner.task": "task", "omnituner.variant": "base's widths",
                 "omnituner.conditions": "conditions' settings", "omnituner.encoders": "encoders"}
_PAIRS = ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"))
LISTED = 3


def decaying_shares(count: int, decay: float, last_decay: float | None = None) -> list[float]:
    """Shares of `count` checkpoints, oldest first: average <- decay * average + (1 - decay) * next, from the first one.

    With `last_decay` the decay moves linearly from `decay` at the second checkpoint to it at the last.
    """
    last = decay if last_decay is None else last_decay
    for value in (decay, last):
        if not 0 <= value < 1:
            raise ConfigError(f"decay {value:g}: a share of what is kept, 0 or more and below 1 (such as 0.9).")
    steps = count - 1
    return _shares([decay + (last - decay) * (i / (steps - 1)) if steps > 1 else decay for i in range(steps)])


def power_shares(count: int, sigma_rel: float) -> list[float]:
    """Shares of `count` evenly spaced checkpoints, oldest first, by the power-function profile of relative width
    `sigma_rel`: decay_t = (1 - 1/t)^(gamma + 1) for t = 1, 2, … from the second checkpoint on, as in musubi-tuner.

    The first decay is 0, so that the oldest file counts as the profile's time 0 and has no share.
    """
    gamma = power_of(sigma_rel)
    return _shares([(1 - 1 / t) ** (gamma + 1) for t in range(1, count)])


def power_of(sigma_rel: float) -> float:
    """gamma of the profile t^gamma whose standard deviation is `sigma_rel` of its length.

    The largest root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = sigma_rel^2, which is not negative.
    """
    if not 0 < sigma_rel <= LARGEST_SIGMA_REL:
        raise ConfigError(f"sigma_rel {sigma_rel:g}: the width of the average as a share of the run, above 0 and at "
                          f"most {LARGEST_SIGMA_REL:.4f}, where all steps count alike. Karras et al. use 0.05 to 0.25.")
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return max(0.0, float(roots[np.isreal(roots)].real.max()))


def _shares(decays: Sequence[float]) -> list[float]:
    shares = [1.0]
    for decay in decays:
        shares = [share * decay for share in shares] + [1 - decay]
    return shares


@dataclass(frozen=True)
class Checkpoint:
    """A network file's header."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Mapping[str, Any]]
    """{name: dtype and shape as safetensors tells them}."""

    @property
    def steps(self) -> int | None:
        """Optimiser steps behind it; None where it does not tell."""
        text = self.metadata.get("ss_steps", "")
        return int(text) if text.isdigit() else None


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Header of a network file. NetworkFileError where it is none or cut short."""
    path = Path(path)
    if not path.is_file():
        raise NetworkFileError(f"{path}: no such file.")
    try:
        metadata, header = read_header(path)
    except UserError as error:
        raise NetworkFileError(str(error)) from error
    return Checkpoint(path, metadata or {}, header)


def in_time(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], str]:
    """Oldest first, and by what: the steps where every file tells its own, else the files' times (musubi-tuner's rule,
    which a copy of the files spoils)."""
    steps = [one.steps for one in checkpoints]
    if None not in steps and len(set(steps)) == len(steps):
        return sorted(checkpoints, key=lambda one: one.steps or 0), "their training steps"
    return sorted(checkpoints, key=lambda one: one.path.stat().st_mtime), "the files' times"


def refuse_strangers(checkpoints: Sequence[Checkpoint], *, any_run: bool = False) -> None:
    """NetworkFileError, with every reason, unless all are of one run (`any_run`: unless all are of one form)."""
    first = checkpoints[0]
    told = _SAME_NETWORK if any_run else {**_SAME_RUN, **_SAME_NETWORK}
    problems = []
    for one in checkpoints[1:]:
        for key, name in told.items():
            values = [file.metadata.get(key) for file in (first, one)]
            if None not in values and values[0] != values[1]:
                hint = "; --any_run if one went on from the other" if key in _SAME_RUN else ""
                problems.append(f"{one.path}: another {name} than {first.path.name}: {_short(values[1])} instead of "
                                f"{_short(values[0])}{hint}")
        lacking, added = (sorted(some.tensors.keys() - others.tensors.keys())
                          for some, others in ((first, one), (one, first)))
        if lacking:
            problems.append(f"{one.path}: lacks {len(lacking)} tensors of {first.path.name}: {_listed(lacking)}")
        if added:
            problems.append(f"{one.path}: has {len(added)} tensors that {first.path.name} lacks: {_listed(added)}")
        shapes = [f"{key} {one.tensors[key]['shape']} instead of {entry['shape']}"
                  for key, entry in first.tensors.items()
                  if key in one.tensors and one.tensors[key]["shape"] != entry["shape"]]
        if shapes:
            problems.append(f"{one.path}: {len(shapes)} tensors of another shape (another rank?): {_listed(shapes)}")
    raise_all(problems, NetworkFileError, "only checkpoints of one run can be averaged")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def _short(text: str | None) -> str:
    text = str(text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def average(checkpoints: Sequence[Checkpoint], shares: Sequence[float]) -> dict[str, Tensor]:
    """The tensors of sum(share * checkpoint), each in the dtype that the newest (last) file stores it in.

    Alphas and whole numbers are taken over. NetworkFileError where those differ, and for NaN or infinite weights.
    Memory: the result, and one tensor of all files at a time.
    """
    result = {}
    for key, tensors in _read(checkpoints):
        newest = tensors[-1]
        if key.endswith(".alpha") or not newest.is_floating_point():
            others = [i for i, tensor in enumerate(tensors) if not torch.equal(tensor.double(), newest.double())]
            if others:
                raise NetworkFileError(f"{checkpoints[others[0]].path}: '{key}' differs from that of "
                                       f"{checkpoints[-1].path.name}, and it is no weight that could be averaged.")
            result[key] = newest
            continue
        total = torch.zeros(newest.shape, dtype=torch.float64)
        for checkpoint, share, tensor in zip(checkpoints, shares, tensors, strict=True):
            if not torch.isfinite(tensor).all():
                raise NetworkFileError(f"{checkpoint.path}: '{key}' holds NaN or infinite numbers. Leave this "
                                       "checkpoint out.")
            total.add_(tensor.double(), alpha=share)
        result[key] = total.to(newest.dtype)
    return result


def _read(checkpoints: Sequence[Checkpoint]) -> Iterator[tuple[str, list[Tensor]]]:
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(one.path, framework="pt")) for one in checkpoints]
        for key in checkpoints[-1].tensors:
            yield key, [file.get_tensor(key) for file in files]


def metadata_of(checkpoints: Sequence[Checkpoint], shares: Sequence[float], rule: str) -> dict[str, str]:
    """The newest file's metadata, and under `omnituner.averaged` what was averaged, how, and with which shares."""
    files = [{"file": one.path.name, "steps": one.steps, "share": share}
             for one, share in zip(checkpoints, shares, strict=True)]
    hashes = ("sshs_model_hash", "sshs_legacy_hash")  # of the newest file; the result gets its own
    kept = {key: text for key, text in checkpoints[-1].metadata.items() if key not in hashes}
    return {**kept, METADATA_KEY: json.dumps({"rule": rule, "files": files})}


def distance_from_products(checkpoints: Sequence[Checkpoint], shares: Sequence[float], averaged: Mapping[str, Tensor]
                           ) -> float | None:
    """How far the products of the averaged factors are from the averages of the products up @ down, as the largest
    |difference| / |average of the products| of a layer (Frobenius); None where no pair is known by its name.

    Nothing of the products' size is made: both are thin factors, whose norms r x r matrices tell.
    """
    from safetensors import safe_open

    pairs = [(name, name.removesuffix(down) + up) for down, up in _PAIRS for name in averaged if name.endswith(down)]
    largest = None
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(one.path, framework="pt")) for one in checkpoints]
        for down, up in pairs:
            downs = [file.get_tensor(down).double().flatten(1) for file in files]
            ups = [share * file.get_tensor(up).double().flatten(1) for share, file in zip(shares, files, strict=True)]
            own = averaged[up].double().flatten(1), averaged[down].double().flatten(1)
            difference = _norm(torch.cat([*ups, -own[0]], dim=1), torch.cat([*downs, own[1]]))
            size = _norm(torch.cat(ups, dim=1), torch.cat(downs))
            if size > 0:
                largest = max(largest or 0.0, difference / size)
    return largest


def _norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down."""
    return math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))
