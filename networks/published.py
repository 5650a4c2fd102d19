"""Files of other projects that hold a trained condition: OmniAvatar's, MultiTalk's and InfiniteTalk's.

Their parameter names are those of our conditions, so reading is a matter of telling them from LoRA, of the settings
that the shapes tell, and of parameters that are written whole where a condition holds the difference to the base.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import json
import re
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from common.errors import NetworkFileError
from networks.condition_weights import METADATA_KEY, PREFIX

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Form:
    """One project's way to write a condition."""

    layout: str
    """Whose it is, for reports."""
    condition: str
    mark: str
    """Regular expression that finds a key which no other form has."""
    keys: str
    """Regular expression that the condition's parameters match whole."""
    settings: Callable[[Shapes], dict[str, str]]
    """Settings as text from the parameters' shapes; KeyError where one is missing."""
    whole: tuple[str, ...] = ()
    """Parameters of the base's own name, written as base + difference."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Metadata that such a file would carry if it were ours."""


def _omniavatar_settings(shapes: Shapes) -> dict[str, str]:
    hidden, packed = shapes["audio_proj.proj.weight"]
    return {"audio_hidden": str(hidden)} | _encoder(packed // 4, released=14 * 768)


def _multitalk_settings(shapes: Shapes) -> dict[str, str]:
    hidden, window = shapes["audio_proj.proj1.weight"]
    [width] = shapes["audio_proj.norm.weight"]
    return {"audio_hidden": str(hidden), "token_width": str(width), "speakers": "lrope",
            "audio_tokens": str(shapes["audio_proj.proj3.weight"][0] // width)} | _encoder(window // 5, 12 * 768)


def _encoder(read: int, released: int) -> dict[str, str]:
    """The encoder by what is read of a frame: wav2vec2-base where it is what released files read, else not known."""
    states, width = (13, 768) if read == released else (0, read)
    return {"audio_states": str(states), "audio_width": str(width)}


def _heard(preset: str, loudness: str) -> dict[str, str]:
    """Metadata by which a generation hears as the project does (`wan.audio_presets`)."""
    return {"omnituner.encoders": json.dumps({"audio": {"options": {"preset": preset, "loudness": loudness}}})}


OMNIAVATAR = Form(
    "OmniAvatar", "omniavatar_add", r"^audio_cond_projs\.|^audio_proj\.norm_out\.",
    r"audio_proj\..+|audio_cond_projs\..+|patch_embedding\.(weight|bias)", _omniavatar_settings,
    whole=("patch_embedding.weight", "patch_embedding.bias"),
    facts={"omnituner.fps": "25.0", "omnituner.picture_mode": "omniavatar", **_heard("omniavatar", "as it is")})
MULTITALK = Form(
    "MultiTalk/InfiniteTalk", "frame_xattn", r"\.audio_cross_attn\.|^audio_proj\.proj1_vf\.",
    r"audio_proj\..+|blocks\.\d+\.(audio_cross_attn|norm_x)\..+", _multitalk_settings,
    facts={"omnituner.fps": "25.0", **_heard("multitalk", "-23 LUFS")})
FORMS = (OMNIAVATAR, MULTITALK)


@dataclass(frozen=True)
class Published:
    """What a file of another project holds of a condition."""

    form: Form
    conditions: dict[str, Tensor]
    """Under the keys of our own files."""
    metadata: dict[str, str]
    whole: tuple[str, ...]
    """Keys of `conditions` from which the base's parameter is still to be taken off."""


def find_published(tensors: Mapping[str, Tensor], where: Any) -> Published | None:
    """The condition among `tensors`, which are the keys of a file, without prefix, that are of no LoRA; or None.

    Raises NetworkFileError for a key beside it that is not the form's, and where its sizes cannot be told.
    """
    form = next((form for form in FORMS if any(re.search(form.mark, key) for key in tensors)), None)
    if form is None:
        return None
    strangers = [key for key in tensors if not re.fullmatch(form.keys, key)]
    if strangers:
        raise NetworkFileError(f"{where}: a file of {form.layout} with {len(strangers)} keys that do not belong to it "
                               f"({', '.join(strangers[:4])}). Use the file as it was published.")
    try:
        settings = form.settings({key: tensor.shape for key, tensor in tensors.items()})
    except (KeyError, ValueError) as error:
        raise NetworkFileError(f"{where}: a file of {form.layout} that lacks {error}, or holds it in another shape. "
                               "The file is incomplete; copy or download it again.") from error
    prefix = f"{PREFIX}{form.condition}."
    return Published(form, {prefix + key: tensor for key, tensor in tensors.items()},
                     {METADATA_KEY: json.dumps({form.condition: settings}), **form.facts},
                     tuple(prefix + key for key in form.whole if key in tensors))


def without_base(whole: Float[Tensor, "D ..."], base: Float[Tensor, "D ..."]) -> Float[Tensor, "D ..."]:
    """A parameter written whole as the difference to the base's, float32; input channels beside the base's stay.

    ValueError where the two are of different width.
    """
    if whole.shape[0] != base.shape[0] or whole.ndim != base.ndim or whole.shape[2:] != base.shape[2:]:
        raise ValueError(f"{list(whole.shape)} beside the base's {list(base.shape)}")
    if whole.ndim == 1:
        return whole.float() - base.float()
    channels = base.shape[1]
    return torch.cat((whole[:, :channels].float() - base.float(), whole[:, channels:].float()), dim=1)


def with_base(own: Float[Tensor, "D ..."], base: Float[Tensor, "D ..."]) -> Float[Tensor, "D ..."]:
    """The parameter whole again, float32; undoes `without_base`."""
    if own.ndim == 1:
        return own.float() + base.float()
    channels = base.shape[1]
    return torch.cat((own[:, :channels].float() + base.float(), own[:, channels:].float()), dim=1)
