"""The flags of sound: what is stored, what the header says, and which choices do not go together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import parse
from common.errors import ConfigError
from common.media.sound import read_sound
from common.tensorfile import load_tensors
from common.timebase import full_chunk_rows, omniavatar_frames_for_tokens
from precompute import ModelFiles, run
from precompute.config import AudioSettings
from precompute.scripts import audio_options
from tests.demo_clips import write_toml
import wan
from wan.audio_presets import find_preset
from wan.encoders.voice_activity import share_in, voiced_share


def settings(*flags: str) -> AudioSettings:
    return parse(AudioSettings, ["--dataset_config", "data.toml", "--wav2vec", "w", *flags], prog="x", description="")


def cache(data: Path, weights: Path, *flags: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of the first entry, made with the flags."""
    models = ModelFiles(wav2vec=weights / "wav2vec2-base-960h", audio=audio_options(settings(*flags)))
    summary = run(["audio"], data / "data.toml", models=models)
    assert not summary.failed and summary.encoded == 2, summary
    assert run(["audio"], data / "data.toml", models=models).fresh == 2
    first = min((data / "cache").glob("head_000*.audio.safetensors"), key=lambda path: path.stat().st_mtime_ns * -1)
    return load_tensors(first)


def test_the_header_says_how_the_sound_was_heard(data: Path, tiny_weights: Path) -> None:
    tensors, header = cache(data, tiny_weights)
    assert set(tensors) == {"states"} and tensors["states"].shape == (81, 3, 32)
    told = {key.removeprefix("option."): value for key, value in header.items() if key.startswith("option.")}
    assert told == {
        "preset": "omniavatar", "states": "all 3", "width": "32", "rate": "frames before the transformer",
        "loudness": "as it is", "scope": "file", "padding": "zeros at the end after normalisation",
        "normalisation": "waveform", "sample_rate": "16000", "dtype": "float32", "stored_dtype": "float32",
        "recipe": told["recipe"]}


def test_another_preset_makes_the_entries_again(data: Path, tiny_weights: Path) -> None:
    cache(data, tiny_weights)
    tensors, header = cache(data, tiny_weights, "--audio_preset", "multitalk")
    assert tensors["states"].shape == (81, 2, 32)
    assert (header["option.states"], header["option.loudness"]) == ("layers 2", "-23 LUFS")
    _, header = cache(data, tiny_weights, "--audio_preset", "multitalk", "--audio_loudness", "-16")
    assert header["option.loudness"] == "-16 LUFS"


def test_fantasy_has_rows_of_50_hz_for_each_clip(data: Path, tiny_weights: Path) -> None:
    tensors, header = cache(data, tiny_weights, "--audio_preset", "fantasy")
    assert tensors["states"].shape == (17, 1, 32), "9 frames at 25 fps are 5760 samples"
    assert header["option.scope"] == "clip" and header["option.padding"] == "none"


@pytest.mark.parametrize("flags", [("--chunk_frames", "41"), ("--audio_scope", "clip", "--max_tokens", "40"),
                                   ("--audio_scope", "clip", "--chunk_frames", "13", "--overlap_frame", "5")])
def test_chunk_padding_lets_the_transformer_hear_full_chunks(data: Path, tiny_weights: Path, flags: tuple[str, ...]
                                                             ) -> None:
    tensors, header = cache(data, tiny_weights, "--audio_padding", "chunk", *flags)
    given = settings("--audio_padding", "chunk", *flags)
    longest = given.chunk_frames or omniavatar_frames_for_tokens(40, 32, 32)
    sound = read_sound(data / "clips" / "head_000.mp4").mono_16k
    frames = 9 if given.audio_scope == "clip" else 81
    sound = np.pad(sound, (0, max(frames * 640 - len(sound), 0)))[:frames * 640]
    encoder = wan.load_audio_encoder(tiny_weights / "wav2vec2-base-960h")
    rows = full_chunk_rows(frames, longest, given.overlap_frame)
    assert rows > frames
    expected = encoder.encode(torch.from_numpy(sound), sample_rate=16_000, fps=25, frames=rows)[:frames]
    torch.testing.assert_close(tensors["states"], expected, rtol=0, atol=1e-6)
    exact = encoder.encode(torch.from_numpy(sound), sample_rate=16_000, fps=25, frames=frames)
    assert not torch.allclose(exact, expected, atol=1e-3)
    assert header["option.padding"].startswith("full chunks of ")


def test_chunks_that_follow_from_the_size_are_made_again_for_another_size(data: Path, tiny_weights: Path) -> None:
    flags = ("--audio_padding", "chunk", "--audio_scope", "clip", "--max_tokens", "40")
    cache(data, tiny_weights, *flags)
    write_toml(data, size=48)
    cache(data, tiny_weights, *flags)
    assert len(list((data / "cache").glob("head_000*.audio.safetensors"))) == 2


@pytest.mark.parametrize("scope", ["file", "clip"])
def test_silence_is_stored_beside_the_sound(data: Path, tiny_weights: Path, scope: str) -> None:
    tensors, header = cache(data, tiny_weights, "--audio_silence", "--audio_scope", scope)
    frames = len(tensors["states"])
    encoder = wan.load_audio_encoder(tiny_weights / "wav2vec2-base-960h")
    expected = encoder.encode(torch.zeros(frames * 640), sample_rate=16_000, fps=25, frames=frames)
    torch.testing.assert_close(tensors["silence"], expected, rtol=0, atol=1e-6)
    assert header["option.silence"] == "of equal length"


def test_speech_is_found_and_the_share_told(data: Path, tiny_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("silero_vad", reason="the optional package silero-vad is not installed")
    with caplog.at_level("INFO"):
        tensors, header = cache(data, tiny_weights, "--voice_activity")
    activity = tensors["vad"]
    assert activity.shape == (81,) and activity.dtype == torch.float32 and 0 <= activity.min() <= activity.max() <= 1
    assert header["option.vad"].startswith("silero-vad 6")
    assert any("of 6.5 s in 2 entries; least in head_00" in message for message in caplog.messages)


def test_recorded_speech_is_voiced_and_silence_is_not(golden: Path) -> None:
    """The golden recording: speech but for short pauses, of 4.0 s; a second of silence put behind is none."""
    pytest.importorskip("silero_vad", reason="the optional package silero-vad is not installed")
    sound = np.pad(read_sound(golden / "speech_16k_mono.wav").mono_16k, (0, 16_000))
    share = voiced_share(sound, 125, 25)
    assert share[:95].mean() > 0.8 and share[104:].max() == 0
    assert not voiced_share(np.zeros(16_000, np.float32), 25, 25).any()
    assert not voiced_share(np.zeros(100, np.float32), 1, 25).any()


def test_a_frame_counts_for_the_part_that_is_speech() -> None:
    assert share_in([(320, 960), (1600, 1920)], 4, 25).tolist() == [0.5, 0.5, 0.5, 0.0]
    assert share_in([(0, 16_000)], 3, 23.976).tolist() == [1.0, 1.0, 1.0]


def test_a_missing_package_is_told_with_its_command(data: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
                                                    ) -> None:
    import importlib.metadata

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    models = ModelFiles(wav2vec=tiny_weights / "wav2vec2-base-960h", audio=audio_options(settings("--voice_activity")))
    with pytest.raises(ConfigError, match="pip install --no-deps silero-vad"):
        run(["audio"], data / "data.toml", models=models)


@pytest.mark.parametrize(("flags", "message"), [
    ("--audio_preset fantasy --audio_scope file", "cannot be cut to clips"),
    ("--audio_preset s2v --audio_padding chunk --chunk_frames 41", "hears no zeros"),
    ("--audio_padding chunk", "Give --chunk_frames, or --audio_scope clip"),
    ("--chunk_frames 41", "--chunk_frames is about the chunks of --audio_padding chunk, which is not asked for"),
    ("--overlap_frame 5 --audio_scope clip", "--overlap_frame is about"),
    ("--audio_padding chunk --chunk_frames 40", "Use 37 or 41"),
    ("--audio_padding chunk --chunk_frames 41 --overlap_frame 12", "Use 9 or 13"),
    ("--audio_padding chunk --chunk_frames 13", "brings nothing new"),
    ("--audio_loudness loud", "LUFS from -70 to 0"),
])
def test_choices_that_do_not_go_together_are_refused(flags: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*flags.split())


def test_flags_become_options() -> None:
    options: Any = audio_options(settings("--audio_preset", "multitalk", "--audio_loudness", "none", "--audio_silence"))
    assert options.preset == find_preset("multitalk", "none") and options.more == ("silence",)
    assert (options.scope, options.padding) == (None, None)
