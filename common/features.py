"""The contract of a cached feature: declared by its encoder, checked by the store, obeyed by the batcher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from common.devices import sent
from common.errors import CacheError

if TYPE_CHECKING:  # a command line lists feature names without paying for torch
    import torch
    from torch import Tensor

KeyPart = Literal["source", "span", "size"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a feature.

    `shape` names the axes ("16 F H W"): a number is that length, `F` the latent frames of the clip, `N` its video
    frames, `H`/`W` latent height and width, any other letter is free. `batching`: `stack` joins samples on a new
    first axis, `list` keeps one tensor a sample (lengths differ). `span_axis`: the axis that counts video frames of
    the whole source, to be cut to the clip's span by the batcher; None where the entry is already the clip's own.
    `halo`: rows of that axis which the batcher also reads on each side of the span (see `rows_of_span`); what is
    stored does not depend on it. `absent`: what a sample without the feature gets, `zeros`, or `like`, the first rows
    of another sample's tensor (encoded silence is much the same everywhere, and is not zero).
    """

    name: str
    shape: str
    batching: Literal["stack", "list"] = "stack"
    span_axis: int | None = None
    halo: int = 0
    absent: Literal["zeros", "like"] = "zeros"


@dataclass(frozen=True)
class FeatureSpec:
    """Name, version, key and tensors of one cached feature. Raise `version` when the meaning of the numbers changes."""

    name: str
    version: int
    keyed_by: tuple[KeyPart, ...]
    tensors: tuple[TensorSpec, ...]
    command: str = "cache_latents.py"
    """Script that makes it, named in messages."""

    def check(self, tensors: "Mapping[str, Tensor]", where: str, sizes: Mapping[str, int]) -> None:
        """Refuse tensors that are missing, unknown, of another shape, or not finite.

        `sizes` gives lengths for letters of the shapes, such as ``{"F": 21, "H": 60, "W": 104}``.
        Raises CacheError naming `where`, the feature and the tensor.
        """
        known = {spec.name for spec in self.tensors}
        for name in tensors:
            if name not in known:
                raise CacheError(f"{where}: feature '{self.name}' has no tensor '{name}' (it has {sorted(known)}).")
        for spec in self.tensors:
            if spec.name not in tensors:
                raise CacheError(f"{where}: feature '{self.name}' lacks the tensor '{spec.name}'.")
            self._check_one(spec, tensors[spec.name], where, sizes)

    def _check_one(self, spec: TensorSpec, tensor: "Tensor", where: str, sizes: Mapping[str, int]) -> None:
        axes = spec.shape.split()
        expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
        fits = len(axes) == tensor.ndim and all(
            want is None or want == got for want, got in zip(expected, tensor.shape, strict=True))
        if not fits:
            want_text = " ".join(f"{a}={w}" if w is not None and not a.isdigit() else a
                                 for a, w in zip(axes, expected, strict=True))
            raise CacheError(f"{where}: {self.name}.{spec.name} has shape {list(tensor.shape)}; expected {want_text}.")
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise CacheError(f"{where}: {self.name}.{spec.name} holds NaN or infinity. "
                             "Look at the source file, and at the encoder's dtype (fp16 overflows; use bf16 or fp32).")


AUDIO_HALO = 2
"""Rows of sound on each side of a clip that its audio conditions may hear (their `hears`)."""
BEFORE, AFTER = "before", "after"
"""Names of the rows on both sides of a clip, beside the tensor that has a `halo`."""


def rows_of_span(read: "Callable[[int, int], Tensor]", rows: int, span: tuple[int, int], halo: int
                 ) -> "tuple[Tensor, Tensor, Tensor]":
    """Rows before, of and after `span` (first row, end) of a sound of `rows` rows: `halo`, its length and `halo` many.

    `read(start, end)` gives rows of the whole, the first axis counting them. Beyond the ends of the sound its first or
    last row is repeated (MultiTalk's rule: indices clamped to the file).
    """
    import torch

    start, end = span
    first, last = max(0, start - halo), min(rows, end + halo)
    found = read(first, last)
    before = found[:1].expand(halo - (start - first), *found.shape[1:])
    after = found[-1:].expand(halo - (last - end), *found.shape[1:])
    wide = torch.cat((before, found, after))
    return wide[:halo], wide[halo:len(wide) - halo], wide[len(wide) - halo:]


@dataclass(frozen=True)
class FeatureBatch:
    """What a forward pass is conditioned on; the same for a training batch and for a generation.

    `features[feature][tensor]` is a stacked tensor (`B …`) or a list of B tensors, as the FeatureSpec's batching says.
    `fps` and `frames` (video frames, 4n+1) hold for the whole batch. `given_latents` `B C F H W` and `given_mask`
    `B 1 F H W` (1 = given, 0 = to be generated) describe clean latent frames; None when nothing is given.
    `first_is_still` `B` bool: frame 0 is a still reference picture, so it has no sound of its own (audio.md 5.7).
    `present[feature]` `B` bool: False where the sample lacks the feature (dropout, guidance, a clip without sound);
    a feature that is not named there is present in every sample.

    Several speakers: `features["audio"]` is the first one's sound, `voices` are the others' (the same keys each), and
    `regions` `B S F H W` says in 0…1, at latent size, where each of the S = 1 + len(voices) is heard; None, with one
    speaker, means everywhere.
    """

    features: Mapping[str, Mapping[str, Any]]
    frames: int
    fps: float
    given_latents: "Tensor | None" = None
    given_mask: "Tensor | None" = None
    first_is_still: "Tensor | None" = None
    present: "Mapping[str, Tensor]" = field(default_factory=dict)
    voices: "Sequence[Mapping[str, Tensor]]" = ()
    regions: "Tensor | None" = None

    def to(self, device: "torch.device | str") -> "FeatureBatch":
        """The batch with every tensor on `device`; the host does not wait for it to arrive there."""
        return self._with_each(lambda tensor: sent(tensor, device))

    def pinned(self) -> "FeatureBatch":
        """The batch in page-locked memory, from which a CUDA device copies by itself."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def _with_each(self, change: "Callable[[Tensor], Tensor]") -> "FeatureBatch":
        return replace(self, **{one.name: _changed(getattr(self, one.name), change) for one in fields(self)
                                if one.name not in ("frames", "fps")})


def _changed(value: Any, change: "Callable[[Tensor], Tensor]") -> Any:
    if isinstance(value, Mapping):
        return {key: _changed(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(one, change) for one in value)
    return None if value is None else change(value)
