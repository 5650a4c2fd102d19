"""wav2vec2 features against OmniAvatar's own, and the folders that the model comes in."""

import json
import math
from pathlib import Path
import shutil

import pytest
from safetensors.torch import load_file, save_file
import torch

from common.errors import MediaError, WeightsError
from tests.light_set import value
from wan.encoders.audio import AudioEncoder, load_audio_encoder


@pytest.fixture(scope="module")
def encoder(wav2vec2: Path) -> AudioEncoder:
    """The tiny random model."""
    return load_audio_encoder(wav2vec2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["mono16k", "stereo44k", "mono16k_silence", "stereo44k_silence"])
def test_golden_features_are_met(golden: Path, case: str, dtype: torch.dtype) -> None:
    """Source: OmniAvatar's script; its vector is the last state followed by all of them (golden README section 2)."""
    cases = load_file(golden / "omniavatar_features_io.safetensors")
    encoder = load_audio_encoder(golden / "omniavatar_wav2vec2", dtype=dtype)
    waveform, frames = cases[f"{case}.waveform"], int(cases[f"{case}.audio_len"])
    states = encoder.encode(waveform, sample_rate=16_000, fps=25, frames=frames)
    features = torch.cat([states[:, -1], states.flatten(1)], dim=1)
    assert (features - cases[f"{case}.features"]).abs().max() < 2e-4
    assert len(encoder.encode(waveform, sample_rate=16_000, fps=25)) == cases[f"{case}.ori_audio_len"]


def test_golden_stereo_file_is_met_from_disk(golden: Path) -> None:
    """Other rates are mixed and resampled as librosa does it (soxr HQ): the waveform decides, features follow."""
    from common.media.sound import read_sound

    cases = load_file(golden / "omniavatar_features_io.safetensors")
    sound = read_sound(golden / "speech_44k_stereo.wav")
    encoder = load_audio_encoder(golden / "omniavatar_wav2vec2")
    mono = torch.from_numpy(sound.samples.mean(axis=0))
    states = encoder.encode(mono, sample_rate=44_100, fps=25, frames=int(cases["stereo44k.audio_len"]))
    assert (states.flatten(1) - cases["stereo44k.features"][:, 16:]).abs().max() < 2e-3


def test_rows_are_the_video_frames_that_the_sound_touches(encoder: AudioEncoder) -> None:
    sound = value("sound", (16_000,))
    for fps in (16, 23.976, 24, 25, 30, 50, 60):
        assert encoder.encode(sound, sample_rate=16_000, fps=fps).shape == (math.ceil(fps), 3, 32), fps
    assert encoder.encode(sound, sample_rate=16_000, fps=25, frames=40).shape == (40, 3, 32)


def test_fewer_frames_are_the_first_rows_of_all(encoder: AudioEncoder) -> None:
    sound = value("sound", (16_000,))
    whole = encoder.encode(sound, sample_rate=16_000, fps=25)
    assert torch.equal(encoder.encode(sound, sample_rate=16_000, fps=25, frames=7), whole[:7])


def test_loudness_and_offset_do_not_matter(encoder: AudioEncoder) -> None:
    """The given waveform is normalised; frames beyond it are zeros after that, so they move nothing inside."""
    sound = value("sound", (16_000,))
    expected = encoder.encode(sound, sample_rate=16_000, fps=25, frames=30)
    louder = encoder.encode(0.1 * sound + 0.3, sample_rate=16_000, fps=25, frames=30)
    torch.testing.assert_close(louder, expected, atol=1e-4, rtol=0)


def test_silence_is_finite(encoder: AudioEncoder) -> None:
    assert encoder.encode(torch.zeros(8000), sample_rate=16_000, fps=25).isfinite().all()


def test_another_rate_is_resampled(encoder: AudioEncoder) -> None:
    time = torch.arange(48_000) / 48_000
    tone = torch.sin(2 * math.pi * 220 * time)
    expected = encoder.encode(tone[::3], sample_rate=16_000, fps=25)
    assert (encoder.encode(tone, sample_rate=48_000, fps=25) - expected).abs().mean() < 0.02


@pytest.mark.parametrize(("sound", "message"), [
    (torch.zeros(399), "399 samples at 16 kHz"),
    (torch.tensor([float("nan")] * 800), "NaN"),
])
def test_sound_that_cannot_be_encoded_is_refused(encoder: AudioEncoder, sound: torch.Tensor, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        encoder.encode(sound, sample_rate=16_000, fps=25)


def test_the_shortest_sound_is_encoded(encoder: AudioEncoder) -> None:
    assert encoder.min_samples == 400
    assert encoder.encode(value("short", (400,)), sample_rate=16_000, fps=25).shape == (1, 3, 32)


def old_spelling(folder: Path, target: Path) -> Path:
    """The folder as a fine-tuned model of old: prefix, weight_g and weight_v, a head, no masked_spec_embed."""
    shutil.copytree(folder, target)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if key != "masked_spec_embed":
            stem, _, last = key.rpartition("parametrizations.weight.")
            state["wav2vec2." + (stem + names["parametrizations.weight." + last] if stem else key)] = tensor
    state["lm_head.weight"] = torch.zeros(32, 32)
    save_file(state, target / "model.safetensors")
    return target


def test_old_and_new_weight_names_give_the_same_numbers(wav2vec2: Path, encoder: AudioEncoder, tmp_path: Path) -> None:
    sound = value("sound", (8000,))
    expected = encoder.encode(sound, sample_rate=16_000, fps=25)
    old = old_spelling(wav2vec2, tmp_path / "old")
    assert torch.equal(load_audio_encoder(old).encode(sound, sample_rate=16_000, fps=25), expected)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    assert torch.equal(load_audio_encoder(old).encode(sound, sample_rate=16_000, fps=25), expected)


def test_loading_says_nothing(wav2vec2: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                              recwarn: pytest.WarningsRecorder) -> None:
    load_audio_encoder(old_spelling(wav2vec2, tmp_path / "old"))
    assert capfd.readouterr() == ("", "") and not list(recwarn)


def test_the_preprocessor_config_rules_the_normalisation(wav2vec2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(wav2vec2, folder)
    settings = folder / "preprocessor_config.json"
    settings.write_text(json.dumps({"do_normalize": False, "sampling_rate": 16_000}))
    assert not load_audio_encoder(folder).normalises
    settings.write_text(json.dumps({"sampling_rate": 8000}))
    with pytest.raises(WeightsError, match="8000 Hz"):
        load_audio_encoder(folder)


def test_folders_that_hold_no_model_are_refused(wav2vec2: Path, light_vae: Path, tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(WeightsError, match=message):
            load_audio_encoder(folder)

    refused(tmp_path / "absent", "not there")
    refused(light_vae, "this is a file")
    refused(tmp_path, r"no config\.json")
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    refused(tmp_path, "'whisper', not 'wav2vec2'")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "not valid JSON")
    shutil.copy(wav2vec2 / "config.json", tmp_path / "config.json")
    refused(tmp_path, "no weights in this folder")
    state = load_file(wav2vec2 / "model.safetensors")
    del state["encoder.layers.1.attention.q_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    refused(tmp_path, r"1 missing: encoder\.layers\.1\.attention\.q_proj\.weight")
