"""The cache: names, freshness, and exactly what a change makes stale."""

import os
from pathlib import Path
import shutil

import pytest
import torch

from common.errors import CacheError, ConfigError, MediaError
from common.tensorfile import read_header
from dataset.header import EntryState
from dataset.index import INDEX_NAME, CacheIndex
from dataset.jobs import FeatureJob
from dataset.media import load_media
from dataset.store import CacheStore
from dataset.work import to_do, work_list
from tests.dataset.toys import (
    MakeVideo,
    ToyAudio,
    ToyControl,
    ToyEncoder,
    ToyLatents,
    ToyReference,
    ToyText,
    cache,
    make_picture,
    make_sound,
    opened,
    write_dataset,
)

TOML = """
[[datasets]]
video_directory = "{d}/clips"
cache_directory = "{d}/cache"
resolution = [48, 32]
target_frames = [9]
frame_extraction = "chunk"
audio = "clip"
"""


@pytest.fixture()
def folder(tmp_path: Path, make_video: MakeVideo) -> Path:
    for number, name in enumerate(("a", "b", "c")):
        make_video(tmp_path / "clips" / f"{name}.mp4", frames=21, sound_s=0.84, seed=number, caption=f"caption {name}")
    write_dataset(tmp_path, TOML)
    return tmp_path


@pytest.fixture()
def encoders(weights: Path) -> list[ToyEncoder]:
    return [ToyLatents(weights, dtype="float32"), ToyText(weights), ToyAudio(weights)]


def states(folder: Path, encoders: list[ToyEncoder]) -> dict[str, str]:
    jobs = [FeatureJob.of(encoder) for encoder in encoders]
    return {entry.name: entry.state.kind if entry.state.kind != "stale" else f"stale {entry.state.field}"
            for entry in work_list(opened(folder / "dataset.toml"), jobs)}


def changed(folder: Path, encoders: list[ToyEncoder]) -> dict[str, str]:
    return {name: state for name, state in states(folder, encoders).items() if state != "fresh"}


def run(folder: Path, encoders: list[ToyEncoder]) -> list[str]:
    return cache(opened(folder / "dataset.toml"), encoders)


def test_names_say_source_clip_and_size(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    names = sorted(path.name for path in (folder / "cache").glob("a-*.safetensors"))
    key = names[0].split(".")[0]
    assert len(key) == len("a-01234567")
    assert names == [f"{key}.audio.safetensors", f"{key}.text.safetensors",
                     f"{key}_00000-009_48x32.latents.safetensors", f"{key}_00009-009_48x32.latents.safetensors"]


def test_second_run_has_nothing_to_do(folder: Path, encoders: list[ToyEncoder]) -> None:
    assert len(run(folder, encoders)) == 3 * (2 + 1 + 1)
    assert run(folder, encoders) == []
    assert set(states(folder, encoders).values()) == {"fresh"}


def test_changed_caption_makes_only_its_text_stale(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    (folder / "clips" / "b.txt").write_text("another caption")
    assert changed(folder, encoders) == {"b.mp4 text": "stale caption"}
    assert run(folder, encoders) == ["b.mp4 text"]
    (folder / "clips" / "b.txt").write_text("  another caption\n")
    assert changed(folder, encoders) == {}, "spaces at the ends are no change"


def test_changed_clip_makes_its_pictures_and_sound_stale(folder: Path, encoders: list[ToyEncoder],
                                                         make_video: MakeVideo) -> None:
    run(folder, encoders)
    make_video(folder / "clips" / "b.mp4", frames=21, sound_s=0.84, seed=9, caption=None)
    assert changed(folder, encoders) == {"b.mp4 frames 0-8 latents": "stale source",
                                         "b.mp4 frames 9-17 latents": "stale source", "b.mp4 audio": "stale source"}
    assert len(run(folder, encoders)) == 3


def test_touched_clip_stays_fresh(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    os.utime(folder / "clips" / "b.mp4", (1, 1))
    assert changed(folder, encoders) == {}


def test_changed_size_makes_latents_missing_and_nothing_else(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    write_dataset(folder, TOML.replace("[48, 32]", "[32, 32]"))
    assert set(changed(folder, encoders).values()) == {"missing"}
    assert all("latents" in name for name in changed(folder, encoders))


def test_changed_fps_makes_latents_and_sound_stale(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    write_dataset(folder, TOML + "target_fps = 24\n")
    found = changed(folder, encoders)
    assert set(found.values()) == {"stale clock"}
    assert not [name for name in found if name.endswith("text")]


def test_encoder_with_the_same_shapes_and_other_values_makes_its_features_stale(
        folder: Path, encoders: list[ToyEncoder], weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(weights.read_bytes().replace(b"first", b"other"))
    run(folder, encoders)
    found = changed(folder, [ToyLatents(other, dtype="float32"), *encoders[1:]])
    assert set(found.values()) == {"stale encoder"}
    assert len(found) == 6
    moved = Path(shutil.copy(weights, tmp_path / "renamed.bin"))
    assert changed(folder, [ToyLatents(moved, dtype="float32"), *encoders[1:]]) == {}, "a copy is the same encoder"


def test_other_option_of_the_encoder_makes_its_features_stale(folder: Path, encoders: list[ToyEncoder],
                                                              weights: Path) -> None:
    run(folder, encoders)
    assert set(changed(folder, [ToyLatents(weights, dtype="bfloat16"), *encoders[1:]]).values()) == {
        "stale option.dtype"}
    assert set(changed(folder, [ToyLatents(weights, dtype="float32", tiling="on"), *encoders[1:]]).values()) == {
        "stale option.tiling"}


def test_damaged_entry_is_stale(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    path = next((folder / "cache").glob("a-*.text.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])
    assert changed(folder, encoders) == {"a.mp4 text": "stale file"}


def test_dataset_copied_elsewhere_is_fresh_and_without_media_unchecked(
        folder: Path, encoders: list[ToyEncoder], tmp_path_factory: pytest.TempPathFactory) -> None:
    run(folder, encoders)
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, copy)
    write_dataset(copy, TOML)
    assert set(states(copy, encoders).values()) == {"fresh"}
    for path in (copy / "clips").glob("*.mp4"):
        path.unlink()
    found = states(copy, encoders)
    assert {state for name, state in found.items() if not name.endswith("text")} == {"unchecked"}
    shutil.rmtree(copy / "clips")
    assert states(copy, encoders) == found
    assert to_do(work_list(opened(copy / "dataset.toml"), [FeatureJob.of(encoders[0])])) == []


def test_absent_media_with_another_rate_cannot_be_judged(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    shutil.rmtree(folder / "clips")
    write_dataset(folder, TOML + "target_fps = 30\n")
    with pytest.raises(ConfigError, match="does not know its frames at 30 fps. Bring the file back"):
        opened(folder / "dataset.toml")


def test_removed_source_is_left_out_and_told(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    (folder / "clips" / "b.mp4").unlink()
    dataset = opened(folder / "dataset.toml")
    assert [item.name for item in dataset.items] == ["a.mp4", "c.mp4"]
    assert "1 cached source is no longer in" in "\n".join(dataset.notes)
    orphans = CacheStore(dataset).orphans()
    assert len(orphans) == 4
    assert all(path.name.startswith("b-") for path in orphans)


def test_cache_beside_the_media_stays_usable_when_only_the_media_go(tmp_path: Path, make_video: MakeVideo,
                                                                   weights: Path) -> None:
    clip = make_video(tmp_path / "clips" / "a.mp4", caption="x")
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\n')
    cache(opened(toml), [ToyLatents(weights), ToyText(weights)])
    clip.unlink()
    jobs = [FeatureJob.of(ToyLatents(weights)), FeatureJob.of(ToyText(weights))]
    assert [entry.state.kind for entry in work_list(opened(toml), jobs)] == ["unchecked", "fresh"]
    clip.with_suffix(".txt").write_text("y")
    assert [entry.state.field for entry in work_list(opened(toml), jobs)] == ["", "caption"]


def test_control_and_reference_files_count_by_their_own_content(tmp_path: Path, make_video: MakeVideo, weights: Path
                                                                ) -> None:
    make_video(tmp_path / "clips" / "a.mp4")
    make_video(tmp_path / "poses" / "a.mp4", seed=5, caption=None)
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\ncontrol_directory = "{d}/poses"\n'
                                   'cache_directory = "{d}/cache"\nresolution = [48, 32]\ntarget_frames = [5]\n')
    encoders = [ToyLatents(weights), ToyControl(weights), ToyReference(weights)]
    assert len(cache(opened(toml), encoders)) == 3
    make_video(tmp_path / "poses" / "a.mp4", seed=6, caption=None)
    assert cache(opened(toml), encoders) == ["a.mp4 frames 0-4 control_latents"]
    write_dataset(tmp_path, toml.read_text() + 'reference = "random"\n')
    found = [entry for entry in work_list(opened(toml), [FeatureJob.of(encoder) for encoder in encoders])
             if entry.state.kind == "stale"]
    assert [(entry.job.spec.name, entry.state.field) for entry in found] == [("reference_latents", "reference")]


def test_changed_sound_file_makes_only_the_sound_stale(tmp_path: Path, make_video: MakeVideo, weights: Path) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=25)
    make_sound(tmp_path / "sound" / "a.wav", 1.0)
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\naudio_directory = "{d}/sound"\n'
                                   'cache_directory = "{d}/cache"\nresolution = [48, 32]\n')
    encoders = [ToyLatents(weights), ToyAudio(weights)]
    cache(opened(toml), encoders)
    make_sound(tmp_path / "sound" / "a.wav", 1.1)
    assert cache(opened(toml), encoders) == ["a.mp4 audio"]


def test_equal_names_in_two_folders_and_with_two_endings_do_not_collide(tmp_path: Path, make_video: MakeVideo,
                                                                       weights: Path) -> None:
    import json

    rows = []
    for number, name in enumerate(("one/x.mp4", "two/x.mp4", "two/x.mov")):
        make_video(tmp_path / name, seed=number)
        rows.append(json.dumps({"video_path": name, "caption": f"caption {number}"}))
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_jsonl_file = "{d}/list.jsonl"\nresolution = [48, 32]\n'
                                   'cache_directory = "{d}/cache"\n')
    dataset = opened(toml)
    cache(dataset, [ToyLatents(weights), ToyText(weights)])
    store = CacheStore(dataset)
    texts = [store.read(item, None, ToyText.spec)[0]["hidden"][-1, 0].item() for item in dataset.items]
    assert texts == [float(ord(digit)) for digit in "012"]
    assert len(list((tmp_path / "cache").glob("x-*.safetensors"))) == 6


def test_header_tells_where_an_entry_comes_from(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    header, _ = read_header(next((folder / "cache").glob("a-*_00009-009_*.latents.safetensors")))
    assert {key: header[key] for key in ("feature", "version", "clock", "start", "frames", "size", "picture_mode",
                                         "option.dtype", "needs")} == {
        "feature": "latents", "version": "1", "clock": "25", "start": "9", "frames": "9", "size": "48x32",
        "picture_mode": "cover", "option.dtype": "float32", "needs": "frames"}
    assert len(header["source"]) == len(header["encoder"]) == 32


def test_nan_and_wrong_shapes_are_refused_by_name_and_nothing_is_written(folder: Path, weights: Path) -> None:
    dataset = opened(folder / "dataset.toml")
    item, span, job = dataset.items[0], dataset.items[0].spans[0], FeatureJob.of(ToyLatents(weights))
    store = CacheStore(dataset)
    with pytest.raises(CacheError, match=r"a\.mp4: latents\.latents holds NaN"):
        store.write(item, span, job, {"latents": torch.full((16, 3, 4, 6), torch.nan)})
    with pytest.raises(CacheError, match=r"latents\.latents has shape \[16, 3, 4, 5\]; expected 16 F=3 H=4 W=6"):
        store.write(item, span, job, {"latents": torch.zeros(16, 3, 4, 5)})
    assert not list((folder / "cache").glob("*.safetensors"))


def test_musubis_caches_are_named_and_left_alone(folder: Path, encoders: list[ToyEncoder]) -> None:
    (folder / "cache").mkdir()
    theirs = folder / "cache" / "a_00000-017_0048x0032_wan.safetensors"
    theirs.write_bytes(b"theirs")
    (folder / "cache" / "a_wan_te.safetensors").write_bytes(b"theirs")
    run(folder, encoders)
    store = CacheStore(opened(folder / "dataset.toml"))
    note = store.musubi_note()
    assert note is not None
    assert note.startswith("2 cache files of musubi-tuner")
    assert theirs.read_bytes() == b"theirs"
    assert store.orphans() == []


def test_our_names_are_not_musubis(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    assert not list((folder / "cache").glob("*_wan.safetensors"))
    assert not list((folder / "cache").glob("*_wan_te.safetensors"))


def test_feature_that_no_source_can_give_is_an_error_with_the_remedy(folder: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match="needs control, and no source has it. Set control_directory"):
        work_list(opened(folder / "dataset.toml"), [FeatureJob.of(ToyControl(weights))])


def test_index_remembers_sources_rows_and_encoders(folder: Path, encoders: list[ToyEncoder], weights: Path) -> None:
    run(folder, encoders)
    index = CacheIndex.load(folder / "cache")
    assert sorted(index.sources) == ["a.mp4", "b.mp4", "c.mp4"]
    assert index.sources["a.mp4"]["frames"] == {"25": 21}
    assert index.rows[0]["caption"] == "caption a"
    job = FeatureJob.from_record(index.features["audio"])
    assert job.weights == (str(weights),)
    assert job == FeatureJob.of(encoders[2])


def test_damaged_index_is_made_anew(folder: Path, encoders: list[ToyEncoder]) -> None:
    run(folder, encoders)
    (folder / "cache" / INDEX_NAME).write_text("{half")
    assert changed(folder, encoders) == {}


def test_sources_are_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(folder / "dataset.toml")
    import dataset.sources

    monkeypatch.setattr(dataset.sources, "_examine", lambda *_: pytest.fail("opened again"))
    assert len(opened(folder / "dataset.toml").items) == 3


def test_absent_source_cannot_be_encoded_and_says_so(folder: Path, encoders: list[ToyEncoder]) -> None:
    dataset = opened(folder / "dataset.toml")
    (folder / "clips" / "a.mp4").unlink()
    with pytest.raises(MediaError, match=r"a\.mp4: the file is not there"):
        load_media(dataset.items[0], dataset.items[0].spans[0], ("frames",))


def test_state_tells_the_field_in_words() -> None:
    state = EntryState("stale", "caption", "0123456789abcdef0123456789abcdef", "f" * 32)
    assert state.reason == "the caption differs (caption: 01234567…, now ffffffff…)"
    assert EntryState("stale", "option.dtype", "float32", "bfloat16").reason == (
        "the encoder's option 'dtype' differs (option.dtype: float32, now bfloat16)")


def test_absent_folder_of_pictures_keeps_its_key_and_caption(tmp_path: Path, weights: Path) -> None:
    for number in range(3):
        make_picture(tmp_path / "clips" / "walk.v2" / f"{number}.png", seed=number, caption=None)
    (tmp_path / "clips" / "walk.v2.txt").write_text("a walk")
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\n')
    cache(opened(toml), [ToyLatents(weights), ToyText(weights)])
    shutil.rmtree(tmp_path / "clips" / "walk.v2")
    jobs = [FeatureJob.of(ToyLatents(weights)), FeatureJob.of(ToyText(weights))]
    assert [entry.state.kind for entry in work_list(opened(toml), jobs)] == ["unchecked", "fresh"]


def test_absent_side_folders_are_taken_from_the_cache(tmp_path: Path, make_video: MakeVideo, weights: Path) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=25)
    make_video(tmp_path / "poses" / "a.mov", frames=25, seed=5, caption=None)
    make_sound(tmp_path / "sound" / "a.wav", 1.0)
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\ncontrol_directory = "{d}/poses"\n'
                                   'audio_directory = "{d}/sound"\ncache_directory = "{d}/cache"\n'
                                   'resolution = [48, 32]\n')
    encoders = [ToyLatents(weights), ToyControl(weights), ToyAudio(weights)]
    cache(opened(toml), encoders)
    shutil.rmtree(tmp_path / "poses")
    shutil.rmtree(tmp_path / "sound")
    jobs = [FeatureJob.of(encoder) for encoder in encoders]
    assert {entry.state.kind for entry in work_list(opened(toml), jobs)} == {"unchecked"}
    shutil.rmtree(tmp_path / "clips")
    assert {entry.state.kind for entry in work_list(opened(toml), jobs)} == {"unchecked"}


def test_list_without_its_media_is_taken_from_the_cache(tmp_path: Path, make_video: MakeVideo, weights: Path) -> None:
    make_video(tmp_path / "v" / "a.mp4", frames=25)
    make_sound(tmp_path / "v" / "a.wav", 1.0)
    make_picture(tmp_path / "v" / "face.png", caption=None)
    (tmp_path / "train.txt").write_text("A man speaks.@@v/face.png@@v/a.wav@@v/a.mp4\n")
    toml = write_dataset(tmp_path, '[[datasets]]\nmanifest_file = "{d}/train.txt"\ncache_directory = "{d}/cache"\n'
                                   'resolution = [48, 32]\n')
    encoders = [ToyLatents(weights), ToyReference(weights), ToyAudio(weights), ToyText(weights)]
    assert len(cache(opened(toml), encoders)) == 4
    shutil.rmtree(tmp_path / "v")
    jobs = [FeatureJob.of(encoder) for encoder in encoders]
    assert [entry.state.kind for entry in work_list(opened(toml), jobs)] == ["unchecked"] * 3 + ["fresh"]
    (tmp_path / "train.txt").write_text("A man sings.@@v/face.png@@v/a.wav@@v/a.mp4\n")
    assert [entry.state.field for entry in work_list(opened(toml), jobs)][3] == "caption"
