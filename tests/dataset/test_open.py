"""Opening a dataset: clips, clocks, sound, sizes, and what is left out with its reason."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from dataset.spans import Span
from tests.dataset.toys import MakeVideo, make_picture, make_sound, opened, write_dataset

BASE = '[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\n'


def test_fps_is_25_with_sound_and_16_without(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=25, sound_s=1.0)
    quiet = opened(write_dataset(tmp_path, BASE + "target_frames = [9]\n"))
    assert (quiet.items[0].fps, quiet.items[0].n_frames, quiet.items[0].sound) == (16.0, 16, None)
    assert "clips at 16 fps by time stamps (target_fps is not set, the entry is without" in "\n".join(quiet.notes)
    loud = opened(write_dataset(tmp_path, BASE + 'target_frames = [9]\naudio = "clip"\n'))
    assert (loud.items[0].fps, loud.items[0].n_frames) == (25.0, 25)
    assert loud.items[0].sound is not None
    assert loud.items[0].sound.is_own


def test_source_fps_is_musubis_rule_at_16_fps(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=30, fps=30)
    dataset = opened(write_dataset(tmp_path, BASE + "source_fps = 30\n"))
    assert (dataset.items[0].fps, dataset.items[0].n_frames) == (16.0, 16)
    assert "musubi-tuner's rule" in "\n".join(dataset.notes)
    # A 12 fps source keeps all its frames (reference page 2.1).
    assert opened(write_dataset(tmp_path, BASE + "source_fps = 12.0\n")).items[0].n_frames == 30


def test_source_fps_with_sound_is_refused(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", sound_s=1.0)
    with pytest.raises(ConfigError, match="loses the clock"):
        opened(write_dataset(tmp_path, BASE + 'source_fps = 25\naudio = "clip"\n'))


def test_short_clips_are_listed_and_the_rest_goes_on(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "long.mp4", frames=30)
    make_video(tmp_path / "clips" / "short.mp4", frames=10)
    toml = write_dataset(tmp_path, BASE + "target_frames = [17]\ntarget_fps = 25\n")
    dataset = opened(toml)
    assert [item.name for item in dataset.items] == ["long.mp4"]
    assert [(one.name, one.reason) for one in dataset.dropped] == [
        ("short.mp4", "10 frames at 25 fps; the shortest target is 17")]
    (tmp_path / "clips" / "long.mp4").unlink()
    with pytest.raises(ConfigError, match="no source gives a clip: short.mp4: 10 frames"):
        opened(toml)


def test_broken_video_costs_only_itself(tmp_path: Path, make_video: MakeVideo) -> None:
    good = make_video(tmp_path / "clips" / "good.mp4")
    bad = make_video(tmp_path / "clips" / "bad.mp4")
    bad.write_bytes(good.read_bytes()[:700])
    make_video(tmp_path / "clips" / "empty.mp4").write_bytes(b"")
    dataset = opened(write_dataset(tmp_path, BASE))
    assert [item.name for item in dataset.items] == ["good.mp4"]
    assert [one.name for one in dataset.failed] == ["bad.mp4", "empty.mp4"]
    assert "0 bytes" in dataset.failed[1].reason


def test_clips_without_sound_where_it_is_asked_are_all_told(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4")
    make_video(tmp_path / "clips" / "b.mp4")
    make_video(tmp_path / "clips" / "c.mp4", sound_s=1.0)
    with pytest.raises(ConfigError) as raised:
        opened(write_dataset(tmp_path, BASE + 'audio = "clip"\n'))
    assert str(raised.value).count("the file has no sound track") == 2


def test_a_list_names_the_file_as_well_as_the_line(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "silent.mp4")
    (tmp_path / "clips.jsonl").write_text('{"video_path": "silent.mp4", "caption": "x"}\n', encoding="utf-8")
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_jsonl_file = "{d}/clips.jsonl"\ncache_directory = "{d}/cache"\n'
                         'resolution = [48, 32]\naudio = "clip"\n')
    with pytest.raises(ConfigError, match=r"clips\.jsonl:1 \(silent\.mp4\): sound is asked"):
        opened(toml)


def test_sound_off_by_less_than_a_frame_works_and_more_is_refused(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=25)
    toml = write_dataset(tmp_path, BASE + 'target_frames = [25]\naudio_directory = "{d}/sound"\n')
    make_sound(tmp_path / "sound" / "a.wav", 0.97)
    dataset = opened(toml)
    assert "'clips': a.mp4: the sound begins or ends inside a clip" in "\n".join(dataset.notes)
    make_sound(tmp_path / "sound" / "a.wav", 0.5)
    with pytest.raises(ConfigError, match=r"misses 12\.5 frames \(0\.50 s\) of a clip of 25.*--audio_short"):
        opened(toml)


def test_policy_for_short_sound_fills_or_trims_and_is_remembered(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=25)
    make_sound(tmp_path / "sound" / "a.wav", 0.5)
    toml = write_dataset(tmp_path, BASE + 'target_frames = [9, 25]\naudio_directory = "{d}/sound"\n')
    with pytest.raises(ConfigError):
        opened(toml)
    assert [span.frames for span in opened(toml, audio_short="trim").items[0].spans] == [9]
    assert [span.frames for span in opened(toml).items[0].spans] == [9], "the next script sees the same clips"
    assert [span.frames for span in opened(toml, audio_short="silence").items[0].spans] == [9, 25]
    assert [span.frames for span in opened(toml).items[0].spans] == [9, 25]


def test_trimmed_clips_begin_where_the_sound_begins(tmp_path: Path, make_video: MakeVideo) -> None:
    from dataset.items import Sound
    from dataset.rows import FileRef
    from dataset.sound import missing_frames, usable_frames

    late = Sound(FileRef(tmp_path, "x"), "", is_own=True, zero_s=2.0, extent_s=(2.4, 4.0))
    assert usable_frames(late, 25.0, 100) == (9, 51)
    assert missing_frames(late, 25.0, Span(0, 9, 16, 16)) == 9
    assert missing_frames(late, 25.0, Span(13, 9, 16, 16)) == 0


def test_one_bucket_serves_videos_and_pictures_without_enable_bucket(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "wide.mp4", size=(64, 32))
    make_video(tmp_path / "clips" / "tall.mp4", size=(32, 64))
    dataset = opened(write_dataset(tmp_path, BASE.replace("[48, 32]", "[50, 40]")))
    assert {span.size for item in dataset.items for span in item.spans} == {(48, 32)}
    assert "resolution 50x40 becomes 48x32" in "\n".join(dataset.notes)
    bucketed = opened(write_dataset(tmp_path, BASE + "enable_bucket = true\n"))
    assert {item.name: item.spans[0].size for item in bucketed.items} == {"wide.mp4": (48, 32), "tall.mp4": (32, 48)}


def test_multiple_comes_from_the_variant(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4")
    dataset = opened(write_dataset(tmp_path, BASE.replace("[48, 32]", "[80, 48]")), variant_multiple=32)
    assert dataset.items[0].spans[0].size == (64, 32)
    assert dataset.sizes(dataset.items[0], dataset.items[0].spans[0]) == {"F": 1, "H": 2, "W": 4, "N": 1}


def test_pictures_are_clips_of_one_frame(tmp_path: Path) -> None:
    make_picture(tmp_path / "pictures" / "p.png", size=(64, 64))
    dataset = opened(write_dataset(
        tmp_path, '[general]\naudio = "clip"\n[[datasets]]\nimage_directory = "{d}/pictures"\nresolution = 32\n'))
    assert dataset.items[0].spans == (Span(0, 1, 32, 32),)
    assert dataset.items[0].sound is None


def test_oddities_of_sources_are_told_in_one_line_each(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        path = make_picture(tmp_path / "pictures" / f"{number}.png", size=(40, 40))
        Image.open(path).convert("RGBA").save(path)
        pixels = Image.open(path)
        pixels.putalpha(100)
        pixels.save(path)
    dataset = opened(write_dataset(
        tmp_path, '[[datasets]]\nimage_directory = "{d}/pictures"\nresolution = 32\n'))
    assert [note for note in dataset.notes if "3 sources (0.png, …)" in note], dataset.notes


def test_reference_outside_the_clip_needs_frames_outside(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=21)
    outside = BASE + 'reference = "random_outside"\ntarget_fps = 25\n'
    item = opened(write_dataset(tmp_path, outside + "target_frames = [17]\n")).items[0]
    frame = item.reference_frame(item.spans[0])
    assert frame is not None
    assert 17 <= frame < 21
    with pytest.raises(ConfigError, match="the clip is the whole source"):
        opened(write_dataset(tmp_path, outside + "target_frames = [21]\n"))


def test_sources_are_required_when_asked(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "clips" / "a.mp4")
    toml = write_dataset(tmp_path, BASE)
    opened(toml)
    path.unlink()
    assert not opened(toml).items[0].is_checked
    with pytest.raises(ConfigError, match="the sources are required"):
        opened(toml, require_media=True)


@pytest.mark.parametrize("bucket", ["true", "false"])
def test_resolution_below_the_multiple_is_told(tmp_path: Path, make_video: MakeVideo, bucket: str) -> None:
    make_video(tmp_path / "clips" / "a.mp4")
    toml = write_dataset(tmp_path, BASE.replace("[48, 32]", "[24, 24]") + f"enable_bucket = {bucket}\n")
    with pytest.raises(ConfigError, match="resolution 24x24 is too small for multiples of 32"):
        opened(toml, variant_multiple=32)
