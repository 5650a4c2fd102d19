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
from precompute.loading import AHEAD, ClipRequest, WorkerLoader, open_loader
from precompute.writing import EntryWriter
from wan.encoders.features.latents import LatentsEncoder
from wan.memory.vae_speed import usual_speed

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


def end_to_end(bench: "Bench", folder: Path, *, clips: int, workers: int, made: bool) -> None:
    """Clips a second against the VAE's own rate, both as `cache_latents.py` runs it.

    `made`: of clips made in the workers, else of mp4 files. Loading, compiling, tuning, the start of the workers and
    what they have ready by then do not count: the first clips, `uncounted` of them, are left out.
    """
    from benchmarks.vae_speed import BF16, FP32, Way

    clips += uncounted(workers)
    dtype = BF16 if bench.device != "cpu" else FP32
    way = Way("as cached", dtype, usual_speed(bench.device, dtype, many=True))
    vae, video = bench.vae(way), bench.video()
    with torch.no_grad():
        own_s = bench.timed(lambda: vae.encode(video))
    told = {"own_s": own_s, "counted": clips - uncounted(workers), "workers": workers}
    if made:
        rate = made_rate(bench, vae, folder, clips=clips, workers=workers)
        bench.add(what="end to end, made", way=str(dtype), clips_s=rate, of_vae=rate * own_s, **told)
    elif not (find_spec("av") and find_spec("pydantic")):
        print("  mp4: PyAV or pydantic is not installed, so that no real file can be read")
    else:
        del vae, video
        config = write_clips(bench, folder / "mp4", clips)
        frames_s = workers_rate(bench, config, clips=clips, workers=workers)
        rate = mp4_rate(bench, config, clips=clips, workers=workers, dtype=str(dtype).removeprefix("torch."))
        bench.add(what="end to end, mp4", way=str(dtype), clips_s=rate, of_vae=rate * own_s,
                  frames_s=rate * bench.size[0], workers_frames_s=frames_s, **told)


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


def write_clips(bench: "Bench", folder: Path, clips: int) -> Path:
    """A dataset TOML over H.264 files of 1.5 times the size, of unequal contents; the path of the TOML."""
    import cv2
    import numpy as np

    from common.media.video import write_video

    frames, height, width = bench.size
    folder.mkdir()
    source = folder / "source.mp4"
    media = make_clip(MadeClip(0, frames + 4, height * 3 // 2 // 2 * 2, width * 3 // 2 // 2 * 2))
    assert media.frames is not None
    rng = np.random.default_rng(0)
    # Grain that is another one in each frame, as a camera's: else one picture and its motion would be all to decode.
    write_video(source, (cv2.GaussianBlur(frame, (0, 0), 2) // 2 + rng.integers(0, 12, frame.shape, np.uint8)
                         for frame in media.frames), fps=16)
    print(f"  {clips} files of {source.stat().st_size / 1e6:.2f} MB, {media.frames.shape[2]}x{media.frames.shape[1]}",
          flush=True)
    for number in range(clips):
        (folder / f"{number:03d}.mp4").write_bytes(source.read_bytes() + b"\0" * number)
        (folder / f"{number:03d}.txt").write_text("a caption")
    source.unlink()
    (folder / "data.toml").write_text(
        f'[general]\nresolution = [{width}, {height}]\nbatch_size = 1\nenable_bucket = false\n[[datasets]]\n'
        f'video_directory = "{folder}"\ncache_directory = "{folder / "cache"}"\ntarget_frames = [{frames}]\n'
        'target_fps = 16.0\naudio = "none"\n')
    return folder / "data.toml"


def workers_rate(bench: "Bench", config: Path, *, clips: int, workers: int) -> float:
    """Frames a second that the workers decode, resize and hand over, when nobody encodes."""
    from dataset.config import load_dataset_config
    from dataset.open import open_dataset
    from dataset.spans import Span

    frames, height, width = bench.size
    requests = [ClipRequest(item, Span(0, frames, width, height), frozenset({"frames"}))
                for item in open_dataset(load_dataset_config(config)).items]
    with open_loader(workers) as loader:
        times = []
        for loaded in loader.load(requests):
            assert isinstance(loaded, Media), loaded
            times.append(time.perf_counter())
    first = min(workers, clips - 2)
    return frames * (clips - 1 - first) / (times[-1] - times[first])


def mp4_rate(bench: "Bench", config: Path, *, clips: int, workers: int, dtype: str) -> float:
    """Clips a second of `precompute.run`, from the times of its entries."""
    import numpy as np

    from benchmarks.vae_speed import FP32, Way
    from precompute import ModelFiles, run
    from precompute.encoding import Handling

    weights = config.parent / "vae.pth"
    torch.save(bench.vae(Way("weights", FP32)).state_dict(), weights)
    summary = run(("latents",), config, handling=Handling(num_workers=workers),
                  models=ModelFiles(vae=weights, vae_dtype=dtype, device=bench.device))
    assert not summary.failed, summary.failed
    times = np.sort([path.stat().st_mtime for path in (config.parent / "cache").glob("*.latents.safetensors")])
    first = uncounted(workers)
    assert len(times) == clips, f"{clips} clips and {len(times)} entries"
    return (len(times) - 1 - first) / float(times[-1] - times[first])
