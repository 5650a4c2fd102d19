"""The demos' commands are ones that the scripts take, and what they draw from is what they say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.config import Section, parse
from common.errors import ConfigError, MediaError, UserError
from dataset.config import load_dataset_config
from dataset.open import open_dataset
from inference.prompts import read_prompts
from inference.request import GenerationRequest
from precompute.config import AudioSettings, LatentSettings, TextSettings
from tools.proof.commands import (
    SET,
    Commands,
    cache_commands,
    dataset_toml,
    generate_command,
    prompt_line,
    train_command,
)
from tools.proof.inputs import cut_speech, first_speech, make_items, unseen_faces, unseen_sounds
from tools.proof.recipe import DEMO, FPS, FRAMES, FULL, Recipe
from training.config import TrainConfig

RATE = 16_000
RECIPES = pytest.mark.parametrize("recipe", [DEMO, FULL], ids=["demo", "full"])


def settings_of(kind: type[Section], words: list[str]) -> Section:
    return parse(kind, words[words.index(next(word for word in words if word.endswith(".py"))) + 1:],
                 prog="test", description="")


def syllables(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that swells and fades four times a second."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.2, len(time))
    return (noise * np.abs(np.sin(4 * np.pi * time))).astype(np.float32)


@RECIPES
def test_the_training_command_is_taken_and_says_what_the_recipe_says(recipe: Recipe, tmp_path: Path) -> None:
    settings = settings_of(TrainConfig, train_command(recipe, tmp_path / "talking.toml", tmp_path / "lora"))
    assert isinstance(settings, TrainConfig)
    assert settings.length.max_train_steps == recipe.steps
    assert settings.optimiser.learning_rate == recipe.learning_rate
    assert settings.network.network_dim == settings.network.network_alpha == recipe.network_dim
    assert settings.network.network_args == ["conditions=omniavatar_add", *recipe.network_args]
    assert settings.validation.validation_count == recipe.validation_count
    assert settings.saving.save_at_first


@RECIPES
def test_the_other_commands_are_taken(recipe: Recipe, tmp_path: Path) -> None:
    for processes in (1, 2):
        commands = cache_commands(tmp_path / "talking.toml", processes)
        for kind, words in zip((LatentSettings, TextSettings, AudioSettings), commands, strict=True):
            settings_of(kind, words)
    request = settings_of(GenerationRequest, generate_command(recipe, tmp_path / "lora.safetensors",
                                                              tmp_path / "prompts.txt", tmp_path / "after"))
    assert isinstance(request, GenerationRequest)
    assert request.infer_steps == recipe.infer_steps and request.lora_weight == [tmp_path / "lora.safetensors"]


@RECIPES
def test_the_dataset_is_the_shipped_clips_cut_as_the_recipe_says(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "talking.toml"
    path.write_text(dataset_toml(recipe, SET / "clips", tmp_path / "cache"), encoding="utf-8")
    dataset = open_dataset(load_dataset_config(path), require_media=True)
    assert len(dataset.items) == len(list((SET / "clips").glob("*.mp4"))) > recipe.validation_count
    assert {len(item.spans) for item in dataset.items} == {recipe.spans}
    assert {span.frames for item in dataset.items for span in item.spans} == {recipe.target_frames}


def test_no_training_sees_the_unseen() -> None:
    captions = {path.read_text(encoding="utf-8") for path in (SET / "clips").glob("*.txt")}
    faces, sounds = unseen_faces(SET / "unseen"), unseen_sounds(SET / "unseen")
    assert [name for name, *_ in faces] == ["face_1000", "face_1003"] and len(sounds) == 5
    assert not captions & {caption for _, caption, _ in faces}
    assert {soundfile.info(path).frames for path in sounds} == {FRAMES * RATE // FPS}


def test_a_prompt_line_gives_the_item_back(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("face_1.png", "face_2.png", "speech_0.flac", "speech_1.flac"):
        (folder / name).touch()
    for name in ("face_1.txt", "face_2.txt"):
        (folder / name).write_text("A talking head.\n")
    items = make_items(unseen_faces(folder), unseen_sounds(folder), seed=7)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(map(prompt_line, items)))
    base = GenerationRequest(from_file=prompts)
    requests = [entry.request for entry in read_prompts(prompts, base)]
    assert [(one.prompt, one.image_path, one.audio, one.seed) for one in requests if one is not None] == [
        ("A talking head.", folder / f"face_{face}.png", folder / f"speech_{sound}.flac", 7 + 2 * (face - 1) + sound)
        for face in (1, 2) for sound in (0, 1)]
    assert [item.name for item in items][:2] == ["face_1-speech_0", "face_1-speech_1"]


def test_folders_without_faces_or_sounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no face_"):
        unseen_faces(tmp_path)
    with pytest.raises(MediaError, match="no speech_"):
        unseen_sounds(tmp_path)


def test_only_the_results_of_a_demo_are_cleared(tmp_path: Path) -> None:
    commands = Commands(tmp_path, DEMO)
    commands.result.mkdir()
    mine = commands.result / "thesis.txt"
    mine.touch()
    with pytest.raises(ConfigError, match="not the result of an earlier demo"):
        commands.begin()
    assert mine.exists()
    (commands.result / "commands.sh").touch()
    commands.begin()
    assert not mine.exists() and commands.dataset.is_file()


def test_a_command_that_fails_is_named_with_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = Commands(tmp_path, DEMO)
    commands.begin()
    with pytest.raises(UserError, match=r"exit code 1.*cache_latents\.py"):
        commands.run(["cache_latents.py", "--dataset_config", str(tmp_path / "absent.toml")])
    assert "$ python cache_latents.py" in capfd.readouterr().out
    assert (commands.result / "commands.sh").read_text().startswith("python cache_latents.py")


def test_the_first_stretch_of_speech_begins_where_speech_begins() -> None:
    speech = np.concatenate((np.zeros(2 * RATE), syllables(5)))
    start = first_speech(speech, RATE)
    assert start is not None and abs(start - 2 * RATE) <= 2 * RATE // FPS


def test_a_word_before_a_pause_is_no_stretch_of_speech() -> None:
    speech = np.concatenate((syllables(0.5), np.zeros(3 * RATE), syllables(4)))
    start = first_speech(speech, RATE)
    assert start is not None and start >= 2 * RATE


@pytest.mark.parametrize("sound", [
    np.zeros(6 * RATE), syllables(3), np.concatenate((syllables(1), np.zeros(5 * RATE)))],
    ids=["silent", "too short", "mostly silent"])
def test_what_holds_no_speech_has_no_stretch(sound: np.ndarray) -> None:
    assert first_speech(sound, RATE) is None


def test_recordings_are_cut_to_the_length_of_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech = syllables(5)
    soundfile.write(tmp_path / "talk.wav", speech, RATE)
    soundfile.write(tmp_path / "still.wav", np.zeros(5 * RATE), RATE)
    [cut] = cut_speech([tmp_path / "talk.wav", tmp_path / "still.wav"], tmp_path / "cut")
    samples, rate = soundfile.read(cut)
    start = first_speech(speech, RATE)
    assert (len(samples), rate) == (FRAMES * RATE // FPS, RATE) and start is not None
    np.testing.assert_allclose(samples, speech[start:start + len(samples)], atol=1e-4)
    assert "still.wav: 5.00 s, without 3.24 s of speech" in capsys.readouterr().out


def test_recordings_without_speech_or_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for path in (tmp_path / "talk.wav", tmp_path / "other" / "talk.wav"):
        soundfile.write(path, syllables(5), RATE)
    soundfile.write(tmp_path / "short.wav", syllables(1), RATE)
    with pytest.raises(MediaError, match="none of 1 files"):
        cut_speech([tmp_path / "short.wav"], tmp_path / "cut")
    with pytest.raises(MediaError, match="two files called talk"):
        cut_speech([tmp_path / "talk.wav", tmp_path / "other" / "talk.wav"], tmp_path / "cut")


@pytest.mark.slow
def test_a_whole_demo_in_small(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import json
    import shutil

    from tools.demo import report

    media = tmp_path / "media"
    (media / "clips").mkdir(parents=True)
    for name in ("head_000", "head_001", "head_002"):
        for suffix in (".mp4", ".txt"):
            shutil.copy(SET / "clips" / f"{name}{suffix}", media / "clips")
    recipe = replace(DEMO, steps=2, batch_size=1, target_frames=5, spans=1, infer_steps=1, validation_count=1,
                     validate_every=2, network_dim=4, train_args=())
    commands = Commands(tmp_path / "out", recipe, media)
    items = make_items(unseen_faces(SET / "unseen")[:1], unseen_sounds(SET / "unseen")[:1], seed=1)
    commands.begin()
    commands.cache()
    commands.train()
    assert report(commands, {"Speech": items}, 0.0, has_goals=False) == 0
    said = capfd.readouterr().out
    assert said.count("\n$ python ") == 6 and "generated, after training" in said
    told = json.loads((commands.result / "proof.json").read_text())
    assert [row["step"] for row in told["validations"]] == [0, 2]
    assert set(told["proofs"][0]["stages"]) == {"rendered", "before", "after"}
    for name in ("strip.png", "sync.png", "proof.md", "after/face_1000-speech_0.mp4", "before/face_1000-speech_0.json"):
        assert (commands.result / name).is_file(), name
