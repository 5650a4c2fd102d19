"""From the settings of a cache script to a run of the cache."""

from collections.abc import Sequence

from common.devices import pick_device
from precompute.caching import exit_code, run
from precompute.config import (
    AudioChoice,
    AudioSettings,
    CacheSettings,
    ConditionSettings,
    LatentSettings,
    TextSettings,
)
from precompute.encoding import ONE_BY_ONE, Handling
from precompute.loading import usual_workers
from precompute.models import AudioOptions, ModelFiles
from precompute.processes import processes_here
from wan.audio_presets import find_preset
from wan.encoders.features.audio import ChunkPadding
from wan.encoders.specs import SILENCE, VAD, Given
from wan.variants import TASKS


def run_latents(settings: LatentSettings) -> int:
    """Latents, and what the task's model needs beside them; the exit code."""
    features = ["latents"]
    family = TASKS[settings.task].family if settings.task else None
    if settings.i2v or settings.clip is not None or family in ("i2v", "flf2v") or settings.task == "i2v-14B-FC":
        features.append("image_latents")
    if settings.clip is not None:
        features.append("clip")
    if family == "fun_control":
        features.append("control_latents")
    return _run(features, settings, ModelFiles(
        vae=settings.vae, clip=settings.clip, vae_dtype=settings.vae_dtype, vae_compile=settings.vae_compile,
        clip_dtype=settings.clip_dtype,
        device=pick_device(settings.device), given=_given(family)), _handling(settings))


def run_text(settings: TextSettings) -> int:
    """Caption features; the exit code."""
    return _run(["text"], settings, ModelFiles(t5=settings.t5, tokenizer=settings.tokenizer, t5_dtype=settings.t5_dtype,
                                               fp8_t5=settings.fp8_t5, null_text=settings.null_text,
                                               device=pick_device(settings.device)),
                Handling(batch_size=settings.batch_size))


def run_audio(settings: AudioSettings) -> int:
    """Sound features; the exit code."""
    code = _run(["audio"], settings, ModelFiles(wav2vec=settings.wav2vec, audio=audio_options(settings),
                                                device=pick_device(settings.device)))
    if settings.measure_offset:
        from precompute.offsets import measure_offsets

        measure_offsets(settings.dataset_config, audio_short=settings.audio_short)
    return code


def audio_options(settings: AudioChoice) -> AudioOptions:
    """How the sound is heard, from the flags."""
    padding = None
    if settings.audio_padding == "chunk":
        padding = ChunkPadding(settings.chunk_frames, settings.max_tokens, settings.overlap_frame)
    more = (*([SILENCE] if settings.audio_silence else []), *([VAD] if settings.voice_activity else []))
    return AudioOptions(find_preset(settings.audio_preset, settings.audio_loudness), settings.audio_scope, padding,
                        more)


def run_conditions(settings: ConditionSettings) -> int:
    """Any features by name; the exit code."""
    family = TASKS[settings.task].family if settings.task else None
    return _run(settings.features, settings, ModelFiles(
        vae=settings.vae, t5=settings.t5, clip=settings.clip, wav2vec=settings.wav2vec, tokenizer=settings.tokenizer,
        vae_dtype=settings.vae_dtype, vae_compile=settings.vae_compile,
        t5_dtype=settings.t5_dtype, clip_dtype=settings.clip_dtype,
        device=pick_device(settings.device), given=_given(family), audio=audio_options(settings),
        fp8_t5=settings.fp8_t5, null_text=settings.null_text), _handling(settings))


def _given(family: str | None) -> Given:
    return "first_last" if family == "flf2v" else "first"


def _handling(settings: LatentSettings) -> Handling:
    """Workers and batches, from the flags."""
    workers = settings.num_workers
    if workers is None:
        workers = usual_workers(pick_device(settings.device), processes_here())
    return Handling(workers, settings.batch_size)


def _run(features: Sequence[str], settings: CacheSettings, models: ModelFiles, handling: Handling = ONE_BY_ONE) -> int:
    return exit_code(run(features, settings.dataset_config, models=models, force=settings.force, prune=settings.prune,
                         audio_short=settings.audio_short, handling=handling))
