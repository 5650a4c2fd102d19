"""Rows of `benchmarks.vae_speed`: clips from workers through the VAE into files, against the VAE's own rate."""

from importlib.util import find_spec
from pathlib import Path
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.made_clips import MadeClip, make_clip
from common.media.item import Media
from common.tensorfile import save_tensors
from precompute.loading import AHEAD, WorkerLoader
from precompute.writing import EntryWriter
from wan.encoders.features.latents import LatentsEncoder
from wan.memory.vae_speed import VaeSpeed

if TYPE_CHECKING:
    from benchmarks.vae_speed import Bench


def uncounted(workers: int) -> int:
    """Clips that do not count: while the first is compiled for, the workers make all that may lie ready ahead."""
    return workers + AHEAD + 1


class Files:
    """Stands where the cache's store does: writes the tensors of a clip as an entry is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, item: MadeClip, span: None, job: None, tensors: dict[str, torch.Tensor]) -> None:
        """One file, atomically."""
        save_tensors(self.folder / f"{item.number:05d}.safetensors", tensors, {})


def end_to_end(bench: "Bench", folder: Path, *, clips: int, workers: int) -> None:
    """Clips a second against the VAE's own rate: compiled in bfloat16 on a GPU, the plain path on a CPU."""
    from benchmarks.vae_speed import BF16, FP32, Way

    clips += uncounted(workers)
    way = (Way("bf16 compiled", BF16, VaeSpeed(channels_last=True, compiled=True)) if bench.device != "cpu"
           else Way("fp32 plain", FP32))
    vae, video = bench.vae(way), bench.video()
    own_s = bench.timed(lambda: vae.encode(video))
    rate = made_rate(bench, vae, folder, clips=clips, workers=workers)
    bench.add(what="end to end, made", way=f"{way.name}, {workers} workers", clips_s=rate, of_vae=rate * own_s)
    del vae, video
    if find_spec("av") and find_spec("pydantic"):
        rate = mp4_rate(bench, folder / "mp4", clips=clips, workers=workers,
                        dtype="float32" if way.dtype == FP32 else "bfloat16")
        bench.add(what="end to end, mp4", way=f"{way.name}, {workers} workers", clips_s=rate, of_vae=rate * own_s)
    else:
        print("  mp4: PyAV or pydantic is not installed, so that no real file can be read")


def made_rate(bench: "Bench", vae: Any, folder: Path, *, clips: int, workers: int) -> float:
    """Clips a second through `WorkerLoader`, `LatentsEncoder` and `EntryWriter`, as `precompute.run` strings them."""
    frames, height, width = bench.size
    requests = [MadeClip(number, frames, height, width) for number in range(clips)]
    encoder = LatentsEncoder(vae, "unused")
    loader = WorkerLoader(workers, pinned=bench.device != "cpu", reader=make_clip)
    try:
        with EntryWriter(Files(folder)) as writer:  # type: ignore[arg-type]
            started = 0.0
            for index, (request, media) in enumerate(zip(requests, loader.load(requests), strict=True)):
                if index == uncounted(workers):
                    started = time.perf_counter()
                assert isinstance(media, Media), media
                writer.put(SimpleNamespace(item=request, span=None, job=None), encoder.encode(media))  # type: ignore
                assert all(not failure for _, failure in writer.done())
            assert all(not failure for _, failure in writer.done(wait=True))
            return (clips - uncounted(workers)) / (time.perf_counter() - started)
    finally:
        loader.close()


def mp4_rate(bench: "Bench", folder: Path, *, clips: int, workers: int, dtype: str) -> float:
    """Clips a second of `precompute.run` over H.264 files of 1.5 times the size, from the times of its entries."""
    import cv2
    import numpy as np

    from benchmarks.vae_speed import FP32, Way
    from common.media.video import write_video
    from precompute import ModelFiles, run
    from precompute.encoding import Handling

    frames, height, width = bench.size
    folder.mkdir()
    source, weights = folder / "source.mp4", folder / "vae.pth"
    media = make_clip(MadeClip(0, frames + 4, height * 3 // 2 // 2 * 2, width * 3 // 2 // 2 * 2))
    assert media.frames is not None
    write_video(source, (cv2.GaussianBlur(frame, (0, 0), 4) for frame in media.frames), fps=16)
    for number in range(clips):
        (folder / f"{number:03d}.mp4").write_bytes(source.read_bytes() + b"\0" * number)  # unequal contents
        (folder / f"{number:03d}.txt").write_text("a caption")
    source.unlink()
    del media
    torch.save(bench.vae(Way("weights", FP32)).state_dict(), weights)
    (folder / "data.toml").write_text(
        f'[general]\nresolution = [{width}, {height}]\nbatch_size = 1\nenable_bucket = false\n[[datasets]]\n'
        f'video_directory = "{folder}"\ncache_directory = "{folder / "cache"}"\ntarget_frames = [{frames}]\n'
        'target_fps = 16.0\naudio = "none"\n')
    summary = run(("latents",), folder / "data.toml", handling=Handling(num_workers=workers),
                  models=ModelFiles(vae=weights, vae_dtype=dtype, vae_compile=dtype == "bfloat16", device=bench.device))
    assert not summary.failed, summary.failed
    times = np.sort([path.stat().st_mtime for path in (folder / "cache").glob("*.latents.safetensors")])
    first = uncounted(workers)
    return (len(times) - 1 - first) / float(times[-1] - times[first])
