"""What a weights file is, seen from its names, so that a wrong file is answered by what it looks like."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

LORA_ENDINGS = (".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora.down.weight",
                ".lora.up.weight", ".lora_A.default.weight", ".lora_B.default.weight")
LYCORIS_ENDINGS = (".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".hada_w1_a", ".hada_w2_a")


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    name: str
    """As a sentence says it, with its article."""
    is_dit: bool = False
    is_diffusers: bool = False
    comes_later: bool = False
    flag: str = ""
    """Where a user gives such a file."""


Test = Callable[[Collection[str]], bool]


def _has(*names: str) -> Test:
    return lambda keys: all(name in keys for name in names)


def _begins(*prefixes: str) -> Test:
    return lambda keys: any(key.startswith(prefixes) for key in keys)


def _ends(endings: tuple[str, ...]) -> Test:
    return lambda keys: any(key.endswith(endings) for key in keys)


KINDS: tuple[tuple[Kind, Test], ...] = (
    (Kind("OmniAvatar's adapter (LoRA, audio layers and a widened patch embedding)", flag="--lora_weight"),
     lambda keys: _begins("audio_cond_projs.")(keys) and _ends(LORA_ENDINGS)(keys)),
    (Kind("a LoRA", flag="--lora_weight or --network_weights"), _ends(LORA_ENDINGS)),
    (Kind("a LyCORIS adapter (LoKr or LoHa)", flag="--lora_weight"), _ends(LYCORIS_ENDINGS)),
    (Kind("a VACE model", is_dit=True, comes_later=True), _begins("vace_blocks.", "vace_patch_embedding.")),
    (Kind("a Wan 2.2 S2V model", is_dit=True, comes_later=True), _begins("casual_audio_encoder.", "audio_injector.")),
    (Kind("a Wan 2.2 Animate model", is_dit=True, comes_later=True), _begins("face_adapter.", "pose_patch_embedding.")),
    (Kind("a Fun-Camera model", is_dit=True, comes_later=True), _begins("control_adapter.")),
    (Kind("a Fun-Control V1.1 model with a reference", is_dit=True, comes_later=True), _begins("ref_conv.")),
    (Kind("a MultiTalk or InfiniteTalk model", is_dit=True, comes_later=True),
     lambda keys: any(".audio_cross_attn." in key for key in keys)),
    (Kind("the umT5 text encoder", flag="--t5"),
     lambda keys: any(".pos_embedding.embedding.weight" in key for key in keys)),
    (Kind("the umT5 text encoder", flag="--t5"),
     lambda keys: any("layer.0.SelfAttention.q.weight" in key for key in keys)),
    (Kind("the CLIP image encoder", flag="--clip"),
     _begins("visual.", "vision_model.", "pre_layrnorm.", "clip_vision.")),
    (Kind("a wav2vec2 audio encoder", flag="--wav2vec"),
     lambda keys: any("feature_extractor.conv_layers.0.conv.weight" in key for key in keys)),
    (Kind("the Wan 2.2 VAE", flag="--vae", comes_later=True), _begins("encoder.downsamples.0.downsamples.")),
    (Kind("the Wan 2.1 VAE", flag="--vae"), _has("encoder.conv1.weight", "decoder.conv1.weight")),
    (Kind("a VAE in diffusers' layout", flag="--vae"), _has("encoder.conv_in.weight", "decoder.conv_in.weight")),
    (Kind("a Wan DiT", is_dit=True, flag="--dit"), _begins("blocks.0.self_attn.", "blocks.0.cross_attn.")),
    (Kind("a Wan DiT in diffusers' layout", is_dit=True, is_diffusers=True, flag="--dit"),
     lambda keys: _begins("blocks.0.attn1.")(keys) or "condition_embedder.time_proj.weight" in keys),
    (Kind("a HunyuanVideo or Flux model"), _begins("double_blocks.", "txt_in.", "transformer_blocks.")),
    (Kind("a Stable Diffusion model"), _begins("model.diffusion_model.input_blocks.", "input_blocks.", "down_blocks.")),
)
"""From the narrow to the broad: the first test that holds names the file."""

UNKNOWN = Kind("none that is known")


def recognise(keys: Iterable[str]) -> Kind:
    """Kind of file with these names (prefix removed); `UNKNOWN` when no test holds."""
    names = set(keys)
    return next((kind for kind, test in KINDS if test(names)), UNKNOWN)


def looks_like(keys: Collection[str]) -> str:
    """A clause for messages: ``it looks like the Wan 2.1 VAE, which --vae takes``."""
    kind = recognise(keys)
    if kind is UNKNOWN:
        some = ", ".join(sorted(keys)[:3])
        return f"its {len(keys)} tensors are of no model that is known ({some}, …)"
    return f"it looks like {kind.name}" + (f", which {kind.flag} takes" if kind.flag else "")
