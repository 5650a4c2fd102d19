"""What a network file holds for one module, and of which kind it is."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from common.errors import NetworkFileError

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
"""Parts of a LoHa."""
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
"""Parts of a LoKr; each half is whole or a pair."""
LARGEST_SCALE = 1e4
"""Above it an alpha stands for whole factors (9999999999 in files of ai-toolkit and SimpleTuner) and is no strength."""


@dataclass
class Entry:
    """What a file holds for one module."""

    name: str
    """The module as the file spells it, without prefix."""
    keys: list[str] = field(default_factory=list)
    parts: dict[str, Tensor] = field(default_factory=dict)
    """`down` `r I`, `up` `O r`, `bias` `O` of a LoRA pair; those of LOHA or LOKR under their own names; `dora_scale`
    `O 1` or `1 I`; `alpha`; `diff`, `diff_b`, `diff_m`: deltas of weight, bias, modulation."""
    default_scale: float = 1.0
    """alpha / rank where the file has no alpha of its own for the module."""

    @property
    def has_pair(self) -> bool:
        """Whether there is a low-rank pair."""
        return "down" in self.parts

    @property
    def method(self) -> str:
        """LoRA, LoHa or LoKr, by which the change of the weight is made of factors; empty where there are none."""
        if self.has_pair:
            return "LoRA"
        if "hada_w1_a" in self.parts:
            return "LoHa"
        return "LoKr" if any(part in self.parts for part in LOKR) else ""

    @property
    def kind(self) -> str:
        """`method`; DoRA where the length of the weight's rows is kept apart, over LoRA or (as told) another method."""
        if "dora_scale" not in self.parts:
            return self.method or "no LoRA"
        return "DoRA" if self.method == "LoRA" and self.parts["dora_scale"].shape[0] > 1 else (
            f"DoRA over {self.method}" if self.method != "LoRA" else "DoRA by inputs")

    @property
    def direct(self) -> list[str]:
        """Parts that change a parameter without factors, or a bias; only merging has a place for them."""
        return sorted({"bias", "diff", "diff_b", "diff_m"} & set(self.parts))

    @property
    def rank(self) -> int:
        """Width between the factors; 0 where a LoKr's factors are both whole."""
        inner = {"LoRA": ("down",), "LoHa": ("hada_w1_b",), "LoKr": ("lokr_w1_b", "lokr_w2_b")}.get(self.method, ())
        return next((int(self.parts[name].shape[0]) for name in inner if name in self.parts), 0)

    @property
    def scale(self) -> float:
        """alpha / rank: what the product is multiplied by; 1 for a LoKr of whole factors, whatever its alpha."""
        if not self.rank:
            return 1.0
        if "alpha" in self.parts:
            return float(self.parts["alpha"].float()) / self.rank
        return self.default_scale

    @property
    def size(self) -> tuple[int, int]:
        """(outputs, inputs) of the linear layer that it is made for; inputs of a convolution with its kernel."""
        whole = {name: tensor.flatten(1).shape for name, tensor in self.parts.items() if tensor.ndim > 1}
        if self.method == "LoRA":
            return whole["up"][0], whole["down"][1]
        if self.method == "LoHa":
            return whole["hada_w1_a"][0], whole["hada_w1_b"][1]
        halves = [whole[half] if half in whole else (whole[f"{half}_a"][0], whole[f"{half}_b"][1])
                  for half in ("lokr_w1", "lokr_w2")]
        return halves[0][0] * halves[1][0], halves[0][1] * halves[1][1]


def check_entry(entry: Entry, file: Any) -> None:
    """NetworkFileError, naming `file`, for half a pair, factors that do not fit together, and two methods at once.

    A DoRA's lengths that stand as a row (PEFT) become a column here.
    """
    parts, first = entry.parts, entry.keys[0]
    lacking = [part for part in _expected(parts) if part not in parts]
    if lacking:
        raise NetworkFileError(f"{file}: '{first}' stands alone; its other half is missing ({', '.join(lacking)}). The "
                               "file is incomplete; copy or make it again.")
    methods = {method for method, names in (("LoRA", ("down", "up")), ("LoHa", LOHA), ("LoKr", LOKR))
               if any(name in parts for name in names)}
    if len(methods) > 1:
        raise NetworkFileError(f"{file}: '{entry.name}' is {' and '.join(sorted(methods))} at once. Save each to a "
                               "file of its own.")
    for left, right in (("up", "down"), *((f"{half}_a", f"{half}_b") for half in _HALVES)):
        if left in parts and right in parts and parts[left].shape[1] != parts[right].shape[0]:
            raise NetworkFileError(f"{file}: '{first}' {list(parts[left].shape)} and its other half "
                                   f"{list(parts[right].shape)} are of different rank.")
    if entry.method == "LoHa" and parts["hada_w1_b"].shape[0] != parts["hada_w2_b"].shape[0]:
        raise NetworkFileError(f"{file}: '{first}': the two products are of different rank.")
    if entry.method == "LoKr" and entry.scale > LARGEST_SCALE:
        raise NetworkFileError(f"{file}: '{first}' has alpha {float(parts['alpha']):g} for rank {entry.rank}. Such an "
                               "alpha marks whole factors, and these are not; the file contradicts itself.")
    if "dora_scale" in parts and parts["dora_scale"].ndim == 1:
        parts["dora_scale"] = parts["dora_scale"][:, None]


_HALVES = ("hada_w1", "hada_w2", "lokr_w1", "lokr_w2")


def _expected(parts: dict[str, Tensor]) -> list[str]:
    """Parts that must be there, seeing what is."""
    expected: list[str] = []
    if {"down", "up", "bias"} & set(parts):
        expected += ["down", "up"]
    if set(LOHA) & set(parts):
        expected += LOHA
    if set(LOKR) & set(parts):
        for half in ("lokr_w1", "lokr_w2"):
            expected += [half] if half in parts or not {f"{half}_a", f"{half}_b"} & set(parts) else [
                f"{half}_a", f"{half}_b"]
    if "dora_scale" in parts and not expected:
        expected += ["down", "up"]
    return expected
