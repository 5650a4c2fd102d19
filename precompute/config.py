"""Settings of the cache scripts, spelled as musubi-tuner spells them where it has them."""

from collections.abc import Iterable
from pathlib import Path

from common.config import Foreign, Section, flag
from dataset.schema import AudioShort
from wan.encoders.specs import NullText, Scope
from wan.variants import TASKS

_EVERY_SCRIPT = (
    Foreign("skip_existing", "accepted", "entries that are fresh are always skipped, by content and not by name; "
            "--force encodes everything again"),
    Foreign("keep_cache", "accepted", "cache files are never deleted unasked; --prune removes those that nothing uses"),
    Foreign("num_workers", "accepted", "clips are decoded one at a time"),
)


class CacheSettings(Section):
    """What every cache script is told."""

    dataset_config: Path = flag(required=True, help="dataset TOML (docs/datasets.md); musubi-tuner's files work too")
    device: str | None = flag(None, "device to encode on, for example cuda or cpu (default: cuda where there is one)")
    force: bool = flag(False, "encode every entry again, fresh or not")
    prune: bool = flag(False, "remove entries of this script's features that no item of the dataset uses any more")
    audio_short: AudioShort | None = flag(
        None, "a sound that misses more than one video frame of its clip: error names it, silence fills the rest, trim "
              "cuts the clip to the sound (default: what the TOML or an earlier run says, else error)")


class LatentSettings(CacheSettings):
    """Encode videos and pictures with the VAE (and CLIP for image-to-video) into the cache."""

    vae: Path = flag(required=True, help="VAE weights: Wan2.1_VAE.pth, or its safetensors form")
    vae_dtype: str = flag("float32", "precision of the VAE: float32 is Wan's own, bfloat16 is faster",
                          differs="the default is float32, Wan's own precision; musubi-tuner's is bfloat16")
    task: str | None = flag(None, "model that the cache is for; decides what is encoded beside the latents",
                            choices=list(TASKS))
    i2v: bool = flag(False, "also encode the mask and first-frame latents that image-to-video models take "
                            "(on by itself with --clip or an i2v --task)")
    clip: Path | None = flag(None, "CLIP weights (models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth); "
                                   "needed for Wan 2.1 image-to-video and first-last-frame models")
    clip_dtype: str = flag("float32", "precision of CLIP")

    def problems(self) -> Iterable[str]:
        """An image-to-video task needs CLIP."""
        task = TASKS[self.task] if self.task else None
        if task is not None and task.uses_clip and self.clip is None:
            yield f"--task {self.task} needs --clip: its model looks at the first picture through CLIP."
        if self.clip is not None and task is not None and task.family == "t2v":
            yield f"--clip is given, but --task {self.task} has no CLIP branch. Leave one of the two out."


LATENT_FOREIGN = (
    *_EVERY_SCRIPT,
    Foreign("batch_size", "accepted", "clips are encoded one at a time, so that one broken clip costs only itself"),
    Foreign("debug_mode", "coming", "look at the clips with any player until then; the summary lists every crop"),
    Foreign("console_width", "coming", "belongs to --debug_mode"),
    Foreign("console_back", "coming", "belongs to --debug_mode"),
    Foreign("console_num_images", "coming", "belongs to --debug_mode"),
    Foreign("disable_cudnn_backend", "refused", "it works around AMD drivers, on which nothing here is tested"),
    Foreign("vae_cache_cpu", "coming", "the VAE's memory does not grow with a clip's length; use a smaller size"),
    Foreign("one_frame", "refused", "one-frame training belongs to FramePack models, which OmniTuner does not train"),
)


class TextSettings(CacheSettings):
    """Encode captions with umT5-XXL into the cache."""

    t5: Path = flag(required=True, help="umT5-XXL weights: models_t5_umt5-xxl-enc-bf16.pth or ComfyUI's file")
    tokenizer: Path | None = flag(
        None, "spiece.model, or the folder that holds it (default: inside ComfyUI's file, beside the weights, in "
              "google/umt5-xxl/ there, or the hub cache; nothing is downloaded)")
    t5_dtype: str = flag("bfloat16", "precision of umT5: bfloat16 is Wan's own")
    null_text: NullText = flag(
        "empty", "what training shows in place of a caption that it drops (--text_dropout): the empty prompt, or the "
                 "negative one of audio-driven generation (OmniAvatar's); stored beside every caption")


TEXT_FOREIGN = (
    *_EVERY_SCRIPT,
    Foreign("batch_size", "accepted", "captions are encoded one at a time"),
    Foreign("fp8_t5", "coming", "give ComfyUI's fp8 file to --t5 (it is read), or encode on the CPU with --device cpu"),
)


class AudioSettings(CacheSettings):
    """Encode the sound of every clip with wav2vec2 into the cache."""

    wav2vec: Path = flag(required=True, help="folder of wav2vec2-base-960h (config.json and model.safetensors)")
    audio_scope: Scope = flag(
        "file", "what wav2vec2 hears at once: file, the whole sound of a source, cut to each clip afterwards, as at "
                "generation; clip, each clip's sound alone. The numbers differ, so the choice is kept in the cache")


class ConditionSettings(LatentSettings):
    """Encode any features by name into the cache."""

    vae: Path | None = flag(None, "VAE weights, for features that need them")  # type: ignore[assignment]
    t5: Path | None = flag(None, "umT5-XXL weights, for the feature text")
    tokenizer: Path | None = flag(None, "spiece.model for umT5")
    t5_dtype: str = flag("bfloat16", "precision of umT5")
    null_text: NullText = flag("empty", "what training shows in place of a caption that it drops")
    wav2vec: Path | None = flag(None, "wav2vec2 folder, for the feature audio")
    audio_scope: Scope = flag("file", "what wav2vec2 hears at once")
    features: list[str] = flag(required=True, help="features to encode, for example: latents text audio")
