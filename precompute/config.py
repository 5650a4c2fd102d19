"""Settings of the cache scripts, spelled as musubi-tuner spells them where it has them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from common.config import Foreign, Section, flag
from common.errors import ConfigError
from common.timebase import floor_frame_count, is_valid_frame_count
from dataset.schema import AudioShort
from wan.audio_presets import PRESETS, PresetName, Scope, parse_loudness
from wan.encoders.specs import NullText
from wan.text_storage import FP8_T5_DIFFERS, FP8_T5_HELP
from wan.variants import TASKS

_EVERY_SCRIPT = (
    Foreign("skip_existing", "accepted", "entries that are fresh are always skipped, by content and not by name; "
            "--force encodes everything again"),
    Foreign("keep_cache", "accepted", "cache files are never deleted unasked; --prune removes those that nothing uses"),
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
    vae_compile: bool = flag(False, "compile the VAE (CUDA): a minute or more for each size of clips, then a quarter "
                                    "faster; worth it from some hundred clips a size")
    num_workers: int | None = flag(
        None, "processes that read and resize clips while others are encoded; 0: none, each clip is read in its turn "
              "(default: the processor's cores but one, at most 16, when encoding on CUDA; else 0)",
        differs="the default is 0 where the CPU encodes: it has no core to spare")
    batch_size: int = flag(1, "clips of one size and length that are encoded together: helps small and short clips on "
                              "a large GPU; a batch that does not fit is encoded one by one",
                           differs="it is a number of clips of equal size and length; the default is 1")

    def problems(self) -> Iterable[str]:
        """An image-to-video task needs CLIP."""
        task = TASKS[self.task] if self.task else None
        if self.num_workers is not None and self.num_workers < 0:
            yield f"--num_workers {self.num_workers}: give 0 or more."
        if self.batch_size < 1:
            yield f"--batch_size {self.batch_size}: give 1 or more."
        if task is not None and task.uses_clip and self.clip is None:
            yield f"--task {self.task} needs --clip: its model looks at the first picture through CLIP."
        if self.clip is not None and task is not None and task.family == "t2v":
            yield f"--clip is given, but --task {self.task} has no CLIP branch. Leave one of the two out."


LATENT_FOREIGN = (
    *_EVERY_SCRIPT,
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
    fp8_t5: bool = flag(False, FP8_T5_HELP, differs=FP8_T5_DIFFERS)
    null_text: NullText = flag(
        "empty", "what training shows in place of a caption that it drops (--text_dropout): the empty prompt, or the "
                 "negative one of audio-driven generation (OmniAvatar's); stored beside every caption")
    batch_size: int = flag(
        1, "captions of about one length that are encoded together, which is faster on a GPU; their numbers then "
           "differ by rounding from those of one by one",
        differs="the default is 1, each caption by itself; more changes its numbers by rounding")

    def problems(self) -> Iterable[str]:
        """A batch has at least one caption."""
        if self.batch_size < 1:
            yield f"--batch_size {self.batch_size}: give 1 or more."


TEXT_FOREIGN = (
    *_EVERY_SCRIPT,
    Foreign("num_workers", "accepted", "captions need no decoding"),
)


class AudioChoice(Section):
    """How the sound is heard."""

    audio_preset: PresetName = flag(
        "omniavatar", "whose way to hear: model, hidden states, frame rate and loudness (table in docs/audio.md)")
    audio_scope: Scope | None = flag(
        None, "what the encoder hears at once: file, the whole sound of a source, cut to each clip afterwards, as at "
              "generation; clip, each clip's sound alone. The numbers differ, so the choice is kept in the cache "
              "(default: file; clip with --audio_preset fantasy)", choices=("file", "clip"))
    audio_padding: Literal["exact", "chunk"] = flag(
        "exact", "zeros behind the sound: exact, to the end of the last frame; chunk, until every chunk of a "
                 "generation is full, as OmniAvatar does")
    chunk_frames: int | None = flag(None, "with --audio_padding chunk: frames of a chunk, 4n+1, in place of "
                                          "--max_tokens")
    max_tokens: int = flag(30_000, "with --audio_padding chunk: the chunk's length as generate_video.py finds it from "
                                   "the clip's size; needs --audio_scope clip, because a whole source has no size",
                           ge=1)
    overlap_frame: int = flag(13, "with --audio_padding chunk: frames, 4n+1, that chunks share")
    audio_silence: bool = flag(False, "also store how silence of equal length is heard, for conditions with "
                                      "null=silence")
    audio_loudness: str | None = flag(None, "loudness that the sound is brought to first, in LUFS such as -23, or none "
                                            "(default: the preset's)")
    voice_activity: bool = flag(False, "also store how much of every frame is speech (needs silero-vad), and tell the "
                                       "voiced share of the dataset")

    def problems(self) -> Iterable[str]:
        """Choices that do not go together."""
        preset = PRESETS[self.audio_preset]
        try:
            parse_loudness(self.audio_loudness or "none")
        except ConfigError as error:
            yield str(error)
        if not preset.is_by_frame and self.audio_scope == "file":
            yield (f"--audio_scope file: --audio_preset {preset.name} keeps rows at 50 Hz, which are no video frames "
                   "and cannot be cut to clips. Leave it out, or use clip.")
        if self.audio_padding == "exact":
            for name in ("chunk_frames", "max_tokens", "overlap_frame"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    yield f"--{name} is about the chunks of --audio_padding chunk, which is not asked for."
            return
        if not preset.pads:
            yield (f"--audio_padding chunk: --audio_preset {preset.name} hears no zeros behind the sound that would "
                   "depend on chunks. Leave it out.")
        if self.chunk_frames is None and self.audio_scope != "clip":
            yield ("--audio_padding chunk: the length of a chunk follows from the clip's size, and a whole source has "
                   "none. Give --chunk_frames, or --audio_scope clip.")
        for name, frames in (("chunk_frames", self.chunk_frames), ("overlap_frame", self.overlap_frame)):
            if frames is not None and not is_valid_frame_count(frames):
                near = floor_frame_count(max(frames, 1))
                yield f"--{name} {frames}: chunks count 4n+1 frames. Use {near} or {near + 4}."
        if self.chunk_frames is not None and self.chunk_frames <= self.overlap_frame:
            yield (f"--chunk_frames {self.chunk_frames}: a chunk brings nothing new when it shares "
                   f"{self.overlap_frame} frames (--overlap_frame). Use a longer one.")


class AudioSettings(AudioChoice, CacheSettings):
    """Encode the sound of every clip into the cache."""

    wav2vec: Path = flag(required=True, help="folder of the audio encoder, such as wav2vec2-base-960h (config.json and "
                                             "model.safetensors); which one is the preset's matter")
    measure_offset: bool = flag(False, "measure by how many frames the sound of each source comes after its mouth, "
                                       "where a mouth can be read; written to omnituner-offsets.json")


class ConditionSettings(AudioChoice, LatentSettings):
    """Encode any features by name into the cache."""

    vae: Path | None = flag(None, "VAE weights, for features that need them")  # type: ignore[assignment]
    t5: Path | None = flag(None, "umT5-XXL weights, for the feature text")
    tokenizer: Path | None = flag(None, "spiece.model for umT5")
    t5_dtype: str = flag("bfloat16", "precision of umT5")
    fp8_t5: bool = flag(False, FP8_T5_HELP, differs=FP8_T5_DIFFERS)
    null_text: NullText = flag("empty", "what training shows in place of a caption that it drops")
    wav2vec: Path | None = flag(None, "folder of the audio encoder, for the feature audio")
    features: list[str] = flag(required=True, help="features to encode, for example: latents text audio")

    def problems(self) -> Iterable[str]:
        """Those of the sound and of the pictures."""
        yield from AudioChoice.problems(self)
        yield from LatentSettings.problems(self)
