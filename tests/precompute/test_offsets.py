"""The offset of sound and mouth: measured on rendered heads, and no number where there is no mouth."""

import json
from pathlib import Path
import shutil

import numpy as np
import pytest

from common.media.sound import Sound, read_sound
from common.media.video import read_frames, write_video
from precompute.offsets import FILE, measure_offsets, moving
from tests.demo_clips import write_toml


@pytest.fixture(scope="module")
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head in time, one whose sound comes 0.12 s late, noise without a face, and a head that is too short."""
    folder = tmp_path_factory.mktemp("offsets")
    clips = folder / "clips"
    clips.mkdir()
    source = root / "examples" / "demo" / "clips" / "head_000.mp4"
    shutil.copy(source, clips / "fine.mp4")
    frames, sound = read_frames(source, fps=25), read_sound(source)
    lag = round(0.12 * sound.sample_rate)
    late = np.pad(sound.samples, ((0, 0), (lag, 0)))[:, :sound.samples.shape[1]]
    write_video(clips / "late.mp4", frames, fps=25, sound=Sound(late, sound.sample_rate))
    noise = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
    write_video(clips / "noise.mp4", noise, fps=25, sound=sound)
    short = Sound(sound.samples[:, :sound.sample_rate], sound.sample_rate)
    write_video(clips / "short.mp4", frames[:25], fps=25, sound=short)
    for clip in clips.glob("*.mp4"):
        clip.with_suffix(".txt").write_text("a person speaks", encoding="utf-8")
    write_toml(folder)
    return folder


def test_what_can_be_measured_is_and_the_rest_has_a_reason(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        found = measure_offsets(data / "data.toml")
    assert {name: one.offset_frames for name, one in found.items()} == {
        "fine.mp4": 0, "late.mp4": 3, "noise.mp4": None, "short.mp4": None}
    assert all((one.r is None) == (one.offset_frames is None) == bool(one.reason) for one in found.values())
    assert "no mouth" in found["noise.mp4"].reason and "1.00 s; 2 s are needed" in found["short.mp4"].reason
    written = json.loads((data / "cache" / FILE).read_text(encoding="utf-8"))
    assert written["late.mp4"]["offset_frames"] == 3 and written["noise.mp4"]["offset_frames"] is None
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and "late.mp4: the sound comes 3 frames (120 ms) after the mouth" in warnings[0]
    assert "-af atrim=start=0.120,asetpts=PTS-STARTPTS" in warnings[0]
    assert any("measured in 2 of 4 sources; unavailable in 2" in message for message in caplog.messages)


@pytest.mark.parametrize("offset_s", [0.12, -0.2])
def test_the_filter_that_is_named_moves_the_sound(offset_s: float) -> None:
    """FFmpeg's own filters (those in PyAV), on a click 0.5 s into a second of silence."""
    import av.filter

    rate = 16_000
    sound = np.zeros((1, rate), np.float32)
    sound[0, rate // 2] = 1
    frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    graph = av.filter.Graph()
    last = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono", time_base=frame.time_base)
    for part in moving(offset_s).split(","):
        name, _, arguments = part.partition("=")
        node = graph.add(name, arguments)
        last.link_to(node)
        last = node
    sink = graph.add("abuffersink")
    last.link_to(sink)
    graph.configure()
    graph.push(frame)
    graph.push(None)
    found = []
    while True:
        try:
            found.append(graph.pull())
        except (av.EOFError, av.BlockingIOError):
            break
    moved = np.concatenate([one.to_ndarray()[0] for one in found])
    assert found[0].pts == 0 and moved.argmax() / rate == pytest.approx(0.5 - offset_s, abs=1 / rate)
