"""Masks of face and mouth: how they are named, read and judged."""

import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from PIL import Image
import pytest

from common.errors import ConfigError, MediaError
from common.media.picture import fit
from common.media.video import read_frames
from dataset.batches import load_batch
from dataset.jobs import FeatureJob
from dataset.media import load_media
from dataset.plan import plan_training
from dataset.sampler import BatchSampler
from dataset.work import work_list
from tests.dataset.toys import (
    MakeVideo,
    ToyLatents,
    cache,
    make_picture,
    opened,
    write_dataset,
)
from wan.encoders.features.masks import RegionMasksEncoder

BASE = ('[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\ntarget_frames = [9]\ntarget_fps = 25\n'
        'cache_directory = "{d}/cache"\nframe_extraction = "chunk"\n')
FACE = 'face_mask_directory = "{d}/faces"\n'
LIP = 'lip_mask_directory = "{d}/lips"\n'


def make_mask(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = (48, 32), level: int = 255) -> Path:
    """A picture with `level` inside the box (left, top, right, bottom)."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[box[1]:box[3], box[0]:box[2]] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def make_moving_mask(folder: Path, frames: int, *, covered: range) -> Path:
    """A folder of pictures: frame k is white in its first 8 columns if it is `covered`, else black."""
    for index in range(frames):
        make_mask(folder / f"{index:03d}.png", (0, 0, 8 * (index in covered), 32))
    return folder


def test_masks_are_found_by_name_as_picture_video_or_folder(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("a", "b", "c"):
        make_video(tmp_path / "clips" / f"{stem}.mp4")
    make_mask(tmp_path / "faces" / "a.png", (0, 0, 8, 8))
    make_video(tmp_path / "faces" / "b.mkv", caption=None)
    make_moving_mask(tmp_path / "faces" / "c", 21, covered=range(21))
    items = opened(write_dataset(tmp_path, BASE + FACE)).items
    assert [item.region_masks["face"].key for item in items] == [
        "face_mask:a.png", "face_mask:b.mkv", "face_mask:c"]
    assert all(item.has("region_masks") and "lip" not in item.region_masks for item in items)
    shutil.copy(tmp_path / "faces" / "b.mkv", tmp_path / "faces" / "a.mp4")
    with pytest.raises(ConfigError, match=r"a.mp4: several face mask files in .* fit \(a.mp4, a.png\). Keep one\."):
        opened(write_dataset(tmp_path, BASE + FACE))


def test_a_source_without_its_mask_is_told_with_the_nearest_name(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("anna", "bert"):
        make_video(tmp_path / "clips" / f"{stem}.mp4")
    make_mask(tmp_path / "faces" / "anna.png", (0, 0, 8, 8))
    make_mask(tmp_path / "faces" / "brt.png", (0, 0, 8, 8))
    with pytest.raises(ConfigError, match=r"bert.mp4: no face mask file for it in .*faces \(nearest: 'brt'\)"):
        opened(write_dataset(tmp_path, BASE + FACE))
    with pytest.raises(ConfigError, match="lip_mask_directory: no such folder"):
        opened(write_dataset(tmp_path, BASE + LIP))


def test_a_list_gives_masks_to_all_sources_or_to_none(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("a", "b"):
        make_video(tmp_path / f"{stem}.mp4")
    make_mask(tmp_path / "face.png", (0, 0, 8, 8))
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_jsonl_file = "{d}/list.jsonl"\ncache_directory = "{d}/cache"\n')
    rows = [{"video_path": f"{stem}.mp4", "caption": "x", "face_mask_path": "face.png"} for stem in ("a", "b")]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert all(item.region_masks["face"].key == "face_mask:face.png" for item in opened(toml).items)
    del rows[1]["face_mask_path"]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r"list.jsonl:2 .b.mp4.: no face mask file, while other sources have one"):
        opened(toml)


@pytest.mark.parametrize("size", [(96, 64), (70, 50), (50, 70)])
def test_a_mask_meets_the_bucket_as_the_frames_do(tmp_path: Path, make_video: MakeVideo, size: tuple[int, int]) -> None:
    """The video itself as its mask gives the frames themselves, whatever is cut away of them."""
    make_video(tmp_path / "clips" / "a.mp4", frames=21, size=size)
    make_video(tmp_path / "faces" / "a.mp4", frames=21, size=size, caption=None)
    picture = make_picture(tmp_path / "lips" / "a.png", size, caption=None)
    item = opened(write_dataset(tmp_path, BASE + FACE + LIP)).items[0]
    media = load_media(item, item.spans[1], ("frames", "region_masks"))
    assert media.region_masks is not None
    assert np.array_equal(media.region_masks["face"], media.frames)
    assert np.array_equal(media.region_masks["lip"][0], fit(np.array(Image.open(picture)), (48, 32), "cover"))


def test_a_moving_mask_is_read_on_the_clips_clock(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=42, fps=50)
    mask = make_video(tmp_path / "faces" / "a.mp4", frames=21, fps=25, seed=3, caption=None)
    item = opened(write_dataset(tmp_path, BASE + FACE)).items[0]
    found = load_media(item, item.spans[1], ("region_masks",)).region_masks
    assert found is not None
    assert np.array_equal(found["face"], read_frames(mask, fps=25, start_frame=9, count=9, size=(48, 32)))


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: make_moving_mask(path / "a", 12, covered=range(12)),
     r"faces.a: the mask has 12 frames at 25 fps, and the clip is frames 9 to 17 of a\.mp4"),
    (lambda path: make_moving_mask(path / "a", 21, covered=range(9)),
     r"faces.a: a mask that covers nothing of frames 9 to 17 of a\.mp4"),
    (lambda path: make_mask(path / "a.png", (0, 0, 48, 32), level=100), r"a\.png: a mask that covers nothing"),
    (lambda path: make_mask(path / "a.png", (0, 0, 8, 8), size=(32, 32)),
     r"a\.png: the mask is 32x32, and a\.mp4 is 48x32"),
    (lambda path: (path / "a.png").write_bytes(b"no picture"), r"a\.png: not a picture that can be read"),
    (lambda path: (path / "a.mp4").write_bytes(b"no video at all"), r"faces.a\.mp4"),
])
def test_a_mask_that_cannot_be_is_named(tmp_path: Path, make_video: MakeVideo, make: Any, words: str) -> None:
    make_video(tmp_path / "clips" / "a.mp4")
    (tmp_path / "faces").mkdir()
    make(tmp_path / "faces")
    item = opened(write_dataset(tmp_path, BASE + FACE)).items[0]
    with pytest.raises(MediaError, match=words):
        load_media(item, item.spans[1], ("region_masks",))


def test_a_mask_may_be_small_and_of_the_same_shape(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", size=(854, 480))
    make_mask(tmp_path / "faces" / "a.png", (0, 0, 20, 30), size=(107, 60))
    item = opened(write_dataset(tmp_path, BASE + FACE)).items[0]
    assert load_media(item, item.spans[0], ("region_masks",)).region_masks is not None


def test_pictures_have_masks_too(tmp_path: Path) -> None:
    make_picture(tmp_path / "pictures" / "p.png")
    make_mask(tmp_path / "lips" / "p.png", (8, 8, 16, 16))
    toml = ('[[datasets]]\nimage_directory = "{d}/pictures"\nresolution = [48, 32]\n' + LIP)
    item = opened(write_dataset(tmp_path, toml)).items[0]
    tensors = RegionMasksEncoder().encode(load_media(item, item.spans[0], ("region_masks",)))
    assert tensors["lip"].shape == (1, 1, 4, 6) and tensors["lip"].nonzero().tolist() == [[0, 0, 1, 1]]
    assert not tensors["face"].any()


def test_masks_are_fresh_by_content_and_reach_the_batch(tmp_path: Path, make_video: MakeVideo, weights: Path) -> None:
    make_video(tmp_path / "clips" / "a.mp4")
    make_video(tmp_path / "plain" / "b.mp4", seed=1)
    make_mask(tmp_path / "faces" / "a.png", (8, 0, 20, 8))
    other = ('[[datasets]]\nvideo_directory = "{d}/plain"\nresolution = [48, 32]\ntarget_frames = [9]\n'
             'target_fps = 25\ncache_directory = "{d}/cache2"\n')
    toml = write_dataset(tmp_path, BASE + FACE + other)
    encoders: list[Any] = [ToyLatents(weights), RegionMasksEncoder()]
    assert len(cache(opened(toml), encoders)) == 5
    assert cache(opened(toml), encoders) == []

    plan = plan_training(opened(toml), [encoder.spec for encoder in encoders])
    batches = [load_batch(one) for one in BatchSampler(plan, seed=0, epoch=0)]
    by_name = {batch.items[0].item.name: batch.features for batch in batches}
    face = by_name["a.mp4"].features["region_masks"]["face"]
    assert face.shape == (1, 1, 3, 4, 6) and face[0, 0, :, 0, :4].tolist() == [[0, 1, 0.5, 0]] * 3
    assert not by_name["b.mp4"].features["region_masks"]["face"].any()
    assert by_name["b.mp4"].present["region_masks"].tolist() == [False]

    make_mask(tmp_path / "faces" / "a.png", (0, 0, 8, 8))
    jobs = [FeatureJob.of(one) for one in encoders]
    stale = [entry for entry in work_list(opened(toml), jobs) if entry.state.kind == "stale"]
    assert [(entry.job.spec.name, entry.state.field) for entry in stale] == [("region_masks", "mask.face")] * 2
    assert "the face mask differs" in stale[0].state.reason
    cache(opened(toml), encoders)
    make_mask(tmp_path / "lips" / "a.png", (0, 0, 8, 8))
    write_dataset(tmp_path, BASE + FACE + LIP + other)
    assert cache(opened(toml), encoders) == ["a.mp4 frames 0-8 region_masks", "a.mp4 frames 9-17 region_masks"]
    shutil.rmtree(tmp_path / "faces")
    shutil.rmtree(tmp_path / "lips")
    assert [entry.state.kind for entry in work_list(opened(toml), jobs)] == ["unchecked"] * 4 + ["fresh"]
