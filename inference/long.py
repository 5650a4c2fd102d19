"""A long video from first chunk to whole file: watched while it grows, kept where it is interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.atomic import write_text
from common.errors import ConfigError
from common.logs import get_logger
from common.media.growing_video import GrowingVideo, finish_video
from common.media.picture import fit
from inference.chunks import Chunk, make_chunks
from inference.debug import FrameStats
from inference.denoise import Watch
from inference.inputs import Prepared
from inference.noise import noise_for
from inference.outputs import Targets, choose_targets
from inference.plan import Plan
from inference.record import settings_of
from inference.result import GenerationResult, to_frames
from inference.segments import Segment
from inference.unfinished import Unfinished

if TYPE_CHECKING:
    from inference.pipeline import Pipeline

log = get_logger(__name__)

NOT_OF_THE_CHUNKS = ("resume", "frame_stats", "debug", "output_type", "device")
"""Settings that change no number of a chunk."""


def identity_of(plan: Plan, record: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the chunks of a plan hang on; a run goes on only with chunks of the same."""
    settings = {name: value for name, value in settings_of(plan.request).items()
                if name not in NOT_OF_THE_CHUNKS and not _is_path(getattr(plan.request, name))}
    scene = plan.scene
    regions = () if plan.regions is None else (plan.regions.numpy(),)
    ratios = plan.request.step_cache_ratios
    known = {"step_cache_ratios": json.loads(ratios.read_text(encoding="utf-8"))} if ratios is not None else {}
    media = {"picture": () if scene.first is None else (scene.first,),
             "sound": tuple(voice.samples for voice in scene.voices), "regions": regions}
    return {"settings": settings, "weights": {name: one["fingerprint"] for name, one in record["weights"].items()},
            "loras": [[one["fingerprint"], one["multiplier"]] for one in record["loras"]],
            "content": {name: _digest(arrays) for name, arrays in media.items()},
            "chunks": [[one.start, one.frames, one.known] for one in plan.segments], **known}


def _is_path(value: Any) -> bool:
    """Files count by their content, wherever they lie."""
    return isinstance(value, Path) or (isinstance(value, list) and any(isinstance(one, Path) for one in value))


def _digest(arrays: Sequence[np.ndarray]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)  # no copy: a long sound is large
    return digest.hexdigest()


def check_outputs(plan: Plan) -> None:
    """ConfigError where a long video is asked for in a form that it is not written in."""
    request = plan.request
    if plan.is_long and request.save_path is not None and request.output_type != "video":
        raise ConfigError(f"--output_type {request.output_type}: the sound needs {len(plan.segments)} chunks, and what "
                          "several chunks make is written as a video. Use --output_type video, or cut the sound.")


def frame_stats(plan: Plan) -> FrameStats | None:
    """Where the frames are measured, if `--frame_stats` asks for it."""
    if plan.request.frame_stats is None:
        return None
    first = plan.scene.first
    reference = None if first is None else fit(first, plan.size, plan.picture_mode)  # type: ignore[arg-type]
    return FrameStats(plan.request.frame_stats, reference)


def make_long(pipeline: "Pipeline", prepared: Prepared, record: Mapping[str, Any], *, watch: Watch | None = None
              ) -> GenerationResult:
    """Make every chunk and write the video, or with no `--save_path` hold it in memory.

    Finished chunks stay in a folder beside the video until it is whole; `--resume` goes on from them.
    """
    plan = prepared.plan
    result = GenerationResult(video=None, latents=None, sound=plan.written_sound, fps=plan.fps, settings=plan.request,
                              record=record)

    def sample(chunk: Prepared, segment: Segment) -> Tensor:
        return pipeline.sample(chunk, noise=noise_for(plan, segment), watch=watch, chunk=segment.index,
                               description=f"chunk {segment.index + 1} of {len(plan.segments)}")

    stats = frame_stats(plan)
    if plan.request.save_path is None:
        pieces = [chunk.frames for chunk in make_chunks(prepared, pipeline.models.get("vae"), sample)]
        result = replace(result, video=torch.cat(pieces, dim=1))
        if stats is not None:
            stats.measure(result.frames)
            stats.write()
        return result
    targets = choose_targets(plan.request, plan.seed, datetime.now())
    assert targets.video is not None
    kept = Unfinished.begin(targets.video, identity_of(plan, record))

    def sample_and_keep(chunk: Prepared, segment: Segment) -> Tensor:
        latents = sample(chunk, segment)
        kept.keep(segment, latents)
        return latents

    try:
        with GrowingVideo(kept.so_far, fps=plan.fps, sound=result.sound, lead_s=result.sound_lead_s) as video:
            for chunk in make_chunks(prepared, pipeline.models.get("vae"), sample_and_keep, kept.latents):
                frames = to_frames(chunk.frames)
                if stats is not None:
                    stats.measure(frames)
                video.append(frames)
                _tell(plan, chunk, video)
        _finish(kept, targets, result)
    except BaseException:
        _tell_what_is_kept(kept, plan, targets)
        raise
    finally:
        if stats is not None:
            stats.write()
    return replace(result, path=targets.video)


def _finish(kept: Unfinished, targets: Targets, result: GenerationResult) -> None:
    assert targets.video is not None
    finish_video(kept.so_far, targets.video, sound=result.sound, lead_s=result.sound_lead_s)
    if targets.record is not None:
        write_text(targets.record, json.dumps(result.record, indent=2, ensure_ascii=False) + "\n")
    kept.remove()


def _tell(plan: Plan, chunk: Chunk, video: GrowingVideo) -> None:
    log.info("chunk %d of %d done: %.1f of %.1f s can be watched in %s", chunk.segment.index + 1, len(plan.segments),
             video.frames / plan.fps, plan.shown_frames / plan.fps, video.path)


def _tell_what_is_kept(kept: Unfinished, plan: Plan, targets: Targets) -> None:
    count = kept.count()
    if count == 0:
        kept.remove()
        return
    log.warning("%d of %d chunks are kept in %s (%s plays them). Go on with the same flags and --resume --save_path %s",
                count, len(plan.segments), kept.folder, kept.so_far.name, targets.video)
