"""What training is allowed to read, and the message when it is not."""

from dataclasses import replace
from pathlib import Path
import shutil

import pytest

from common.errors import CacheError
from common.fingerprint import weights_fingerprint
from dataset.batches import load_batch
from dataset.plan import plan_training
from dataset.sampler import BatchSampler
from tests.dataset.toys import (
    MakeVideo,
    ToyAudio,
    ToyControl,
    ToyLatents,
    ToyText,
    cache,
    make_picture,
    opened,
    write_dataset,
)

TOML = """
[[datasets]]
video_directory = "{d}/clips"
cache_directory = "{d}/cache"
resolution = [48, 32]
target_frames = [9]
audio = "clip"
"""
SPECS = [ToyLatents.spec, ToyText.spec]


@pytest.fixture()
def folder(tmp_path: Path, make_video: MakeVideo, weights: Path) -> Path:
    for number, name in enumerate(("a", "b", "c")):
        make_video(tmp_path / "clips" / f"{name}.mp4", frames=21, sound_s=0.84, seed=number, caption=f"caption {name}")
    cache(opened(write_dataset(tmp_path, TOML)), [ToyLatents(weights), ToyText(weights), ToyAudio(weights)])
    return tmp_path


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(CacheError) as raised:
        plan_training(opened(folder / "dataset.toml"), SPECS, **options)  # type: ignore[arg-type]
    return str(raised.value)


def test_fresh_cache_is_taken_clip_by_clip(folder: Path, weights: Path) -> None:
    plan = plan_training(opened(folder / "dataset.toml"), [*SPECS, ToyAudio(weights).spec])
    assert [one.name for one in plan] == ["a.mp4@0", "b.mp4@0", "c.mp4@0"]
    assert [entry.spec.name for entry in plan[0].entries] == ["latents", "text", "audio"]
    assert all(entry.path is not None and entry.path.is_file() for one in plan for entry in one.entries)


def test_missing_and_stale_entries_are_told_together_with_the_commands(folder: Path, make_video: MakeVideo) -> None:
    (folder / "clips" / "b.txt").write_text("another")
    make_video(folder / "clips" / "c.mp4", frames=21, sound_s=0.84, seed=8, caption=None)
    next((folder / "cache").glob("a-*.latents.safetensors")).unlink()
    told = refusal(folder)
    assert "latents: 1 missing: a.mp4@0" in told
    assert "latents: 1 the source file differs" in told
    assert "text: 1 the caption differs" in told
    assert f'python cache_latents.py --dataset_config "{folder / "dataset.toml"}"' in told
    assert f'python cache_text_encoder_outputs.py --dataset_config "{folder / "dataset.toml"}"' in told


def test_feature_that_was_never_cached_names_its_command(folder: Path) -> None:
    with pytest.raises(CacheError, match=r"control_latents: 3 missing(.|\n)*cache_latents\.py"):
        plan_training(opened(folder / "dataset.toml"), [ToyControl.spec])


def test_encoder_file_that_changed_since_is_noticed(folder: Path, weights: Path) -> None:
    weights.write_bytes(b"weights of the other kind")
    told = refusal(folder)
    assert "latents: 3 the encoder's weights differs" in told
    weights.unlink()
    plan_training(opened(folder / "dataset.toml"), SPECS)


def test_encoder_that_this_run_names_is_compared(folder: Path, weights: Path, tmp_path: Path) -> None:
    dataset = opened(folder / "dataset.toml")
    plan_training(dataset, SPECS, fingerprints={"latents": weights_fingerprint([weights])})
    other = tmp_path / "other.bin"
    other.write_bytes(b"another encoder")
    assert "encoder's weights" in refusal(folder, fingerprints={"latents": weights_fingerprint([other])})


def test_entries_of_two_encoders_are_not_mixed(folder: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"another encoder")
    before = {path.name: path.read_bytes() for path in (folder / "cache").glob("a-*.latents.safetensors")}
    cache(opened(folder / "dataset.toml"), [ToyLatents(other)])
    for name, content in before.items():
        (folder / "cache" / name).write_bytes(content)
    told = refusal(folder)
    assert "latents: 1 the encoder's weights differs" in told and "the flags that the cache was made with" in told


def test_entries_with_two_options_are_not_mixed(folder: Path, weights: Path) -> None:
    before = {path.name: path.read_bytes() for path in (folder / "cache").glob("a-*.latents.safetensors")}
    cache(opened(folder / "dataset.toml"), [ToyLatents(weights, dtype="bfloat16")])
    for name, content in before.items():
        (folder / "cache" / name).write_bytes(content)
    assert "the encoder's option 'dtype' differs" in refusal(folder)


def test_newer_meaning_of_a_feature_makes_the_cache_stale(folder: Path) -> None:
    from dataclasses import replace

    with pytest.raises(CacheError, match="its version differs"):
        plan_training(opened(folder / "dataset.toml"), [replace(ToyLatents.spec, version=2)])


def test_absent_sources_are_counted_in_one_line_or_refused(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(folder / "clips")
    with caplog.at_level("INFO"):
        assert len(plan_training(opened(folder / "dataset.toml"), SPECS)) == 3
    assert [record.message for record in caplog.records if "3 sources are not there" in record.message]
    assert "unchecked" in refusal(folder, require_sources=True)


def test_sources_that_cannot_be_read_stop_training_with_a_line_each(folder: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (folder / "clips" / name).write_bytes(b"broken")
    told = refusal(folder)
    assert "\n  - cannot be read: a.mp4:" in told
    assert "\n  - cannot be read: b.mp4:" in told
    assert "take them out" in told


def test_scope_that_the_cache_was_made_with_is_followed(folder: Path, weights: Path) -> None:
    dataset = opened(folder / "dataset.toml")
    by_file = plan_training(dataset, [ToyAudio(weights).spec])[0].entries[0]
    assert by_file.spec.keyed_by == ("source",)
    cache(dataset, [ToyAudio(weights, scope="clip")])
    by_clip = plan_training(dataset, [ToyAudio(weights).spec])[0].entries[0]
    assert by_clip.spec.keyed_by == ("source", "span")
    assert by_clip.path != by_file.path


def test_mixed_dataset_trains_silent_entries_without_sound(tmp_path: Path, make_video: MakeVideo, weights: Path
                                                           ) -> None:
    make_video(tmp_path / "talk" / "a.mp4", frames=21, sound_s=0.84)
    make_video(tmp_path / "walk" / "b.mp4", frames=21)
    make_picture(tmp_path / "pictures" / "p.png")
    dataset = opened(write_dataset(tmp_path, """
[general]
resolution = [48, 32]
[[datasets]]
video_directory = "{d}/talk"
target_frames = [9]
audio = "clip"
[[datasets]]
video_directory = "{d}/walk"
target_frames = [9]
target_fps = 25
[[datasets]]
image_directory = "{d}/pictures"
"""))
    cache(dataset, [ToyLatents(weights), ToyText(weights), ToyAudio(weights)])
    spec = ToyAudio(weights).spec
    beside = replace(spec, tensors=tuple(replace(tensor, halo=2) for tensor in spec.tensors))
    plan = plan_training(dataset, [*SPECS, beside])
    assert [one.entries[2].path is not None for one in plan] == [True, False, False]
    batches = {batch.items[0].item.kind + str(batch.items[0].item.section_index): load_batch(batch)
               for batch in BatchSampler(plan, seed=0, epoch=0)}
    assert batches["video0"].features.present == {}
    for name, frames in (("video1", 9), ("image2", 1)):
        features = batches[name].features
        assert features.present["audio"].tolist() == [False]
        assert features.features["audio"]["states"].shape == (1, frames, 1, 2)
        assert features.features["audio"]["before"].shape == features.features["audio"]["after"].shape == (1, 2, 1, 2)
        assert not any(tensor.any() for tensor in features.features["audio"].values())


def test_sound_that_no_source_has_is_an_error(folder: Path, weights: Path) -> None:
    write_dataset(folder, TOML.replace('audio = "clip"', "target_fps = 25"))
    with pytest.raises(CacheError, match="no source has what 'audio' is made from"):
        plan_training(opened(folder / "dataset.toml"), [ToyAudio(weights).spec])
