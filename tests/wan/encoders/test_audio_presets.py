"""The presets of sound: against Wan2.2-S2V's own output, transformers' model-level API, and pyloudnorm."""

from fractions import Fraction
import json
import math
from pathlib import Path

import pyloudnorm
import pytest
from safetensors.torch import load_file
import torch
from torch.nn import functional as F

from common.errors import ConfigError, WeightsError
from tests.light_set import value
from wan.audio_presets import PRESETS, find_preset, parse_loudness, scope_of
from wan.encoders.audio import audio_facts, load_audio_encoder
from wan.encoders.audio_base import at_loudness
from wan.encoders.audio_features import S2V_ROWS_HZ, normalise, s2v_positions

RATE = 16_000
WAV2VEC2 = [name for name, preset in PRESETS.items() if preset.model == "wav2vec2"]


def speech(seconds: float) -> torch.Tensor:
    """Noise with syllables."""
    time = torch.arange(round(seconds * RATE)) / RATE
    return 0.05 * value("noise", (len(time),)) * (1 + torch.sin(2 * math.pi * 3 * time))


@pytest.mark.parametrize("case", ["mono16k", "stereo44k"])
def test_s2v_features_are_met(golden: Path, case: str) -> None:
    """Source: Wan2.2's AudioEncoder on the tiny model, 16 fps (golden README section 6); zero rows beyond the sound."""
    own = load_file(golden / "wan22_s2v_audio_io.safetensors")
    waveform = load_file(golden / "omniavatar_features_io.safetensors")[f"{case}.waveform"]
    encoder = load_audio_encoder(golden / "wan22_s2v_wav2vec2", preset=PRESETS["s2v"])
    assert (encoder.states, encoder.width) == (25, 16)
    torch.testing.assert_close(encoder.prepared(waveform, RATE), own[f"{case}.normalised"], atol=1e-5, rtol=0)
    for batch in (12, 80):
        expected = own[f"{case}.{batch}.audio_input"][0].permute(2, 0, 1)  # F 25 16
        states = encoder.encode(waveform, sample_rate=RATE, fps=16, frames=len(expected))
        assert (states - expected).abs().max() < 2e-4
        beyond = (expected == 0).flatten(1).all(1)
        assert beyond.any() and torch.equal((states == 0).flatten(1).all(1), beyond)
    thirty = own[f"{case}.features30"].permute(1, 0, 2)
    assert (encoder.encode(waveform, sample_rate=RATE, fps=30, frames=len(thirty)) - thirty).abs().max() < 2e-4


def test_s2v_rows_are_those_of_its_tables(golden: Path) -> None:
    """Every case of the original's index table, at 16 and 25 fps exactly.

    At 24 fps every fourth frame lies half-way between two rows. There the original goes by the rounding of a float that
    changes with the number of frames (row 2 or 3 for frame 2), and ours takes the even one.
    """
    cases = json.loads((golden / "wan22_s2v_buckets.json").read_text(encoding="utf-8"))
    assert {case["fps"] for case in cases} == {16, 24, 25} and len(cases) == 60
    for case in cases:
        conv = next(n for n in range(1, 4000) if max(int(n / 50 * S2V_ROWS_HZ), 1) == case["frames30"])
        step = Fraction(conv - 1, case["frames30"] - 1) if case["frames30"] > 1 else Fraction(1)
        centres = [row if isinstance(row, int) else row[case["m"]] for row in case["rows"]]
        found = s2v_positions(range(len(centres)), case["fps"], conv)
        for frame, (position, row) in enumerate(zip(found, centres, strict=True)):
            ours = -1 if position is None else position / step
            is_tie = case["fps"] == 24 and frame % 4 == 2
            assert ours == row or (is_tie and (abs(ours - row) <= 1 or -1 in (ours, row))), (case, frame)


def test_multitalk_keeps_the_layers_of_the_models_own_answer(wav2vec2: Path) -> None:
    """The original on a sound of whole frames: loudness, normalisation, conv features stretched to the rows, layers."""
    from transformers import Wav2Vec2Model

    sound = speech(2)
    model = Wav2Vec2Model.from_pretrained(wav2vec2, attn_implementation="sdpa").eval().requires_grad_(False)
    loudness = pyloudnorm.Meter(RATE).integrated_loudness(sound.double().numpy())
    louder = torch.from_numpy(pyloudnorm.normalize.loudness(sound.double().numpy(), loudness, -23.0)).float()
    features = model.feature_extractor(normalise(louder)[None])
    features = F.interpolate(features, size=50, mode="linear", align_corners=True).transpose(1, 2)
    hidden = model.encoder.layer_norm((x := model.feature_projection(features)[0]) + model.encoder.pos_conv_embed(x))
    expected = []
    for layer in model.encoder.layers:
        result = layer(hidden)
        hidden = result[0] if isinstance(result, tuple) else result
        expected.append(hidden[0])
    encoder = load_audio_encoder(wav2vec2, preset=PRESETS["multitalk"])
    states = encoder.encode(sound, sample_rate=RATE, fps=25)
    assert states.shape == (50, 2, 32) and (encoder.states, encoder.width) == (2, 32)
    torch.testing.assert_close(states, torch.stack(expected, dim=1), atol=1e-5, rtol=0)


def test_fantasy_is_the_last_state_every_20_ms(wav2vec2: Path) -> None:
    from transformers import Wav2Vec2Model

    sound = speech(1.3)
    model = Wav2Vec2Model.from_pretrained(wav2vec2, attn_implementation="sdpa").eval().requires_grad_(False)
    expected = model(normalise(sound)[None]).last_hidden_state[0]
    states = load_audio_encoder(wav2vec2, preset=PRESETS["fantasy"]).encode(sound, sample_rate=RATE, fps=23, frames=30)
    assert states.shape == (64, 1, 32)
    torch.testing.assert_close(states[:, 0], expected, atol=1e-5, rtol=0)


def test_omniavatar_is_what_there_was_before_presets(wav2vec2: Path) -> None:
    sound = speech(1)
    plain = load_audio_encoder(wav2vec2).encode(sound, sample_rate=RATE, fps=25)
    named = load_audio_encoder(wav2vec2, preset=find_preset("omniavatar")).encode(sound, sample_rate=RATE, fps=25)
    assert torch.equal(plain, named) and plain.shape == (25, 3, 32)


@pytest.mark.parametrize("name", [name for name in WAV2VEC2 if PRESETS[name].is_by_frame])
@pytest.mark.parametrize("fps", [16, 23.976, 24, 25, 29.97, 30, 50])
def test_every_frame_rate_has_a_row_a_frame_at_the_same_moment(wav2vec2: Path, name: str, fps: float) -> None:
    """Row i is of the moment i / fps: where two rates share a moment, rows after the transformer are equal.

    Before it, other rates make other sequences; there the count is looked at, and a second of sound at 50 and 25 fps.
    """
    encoder = load_audio_encoder(wav2vec2, preset=PRESETS[name])
    states = encoder.encode(speech(1), sample_rate=RATE, fps=fps)
    assert states.shape == (math.ceil(fps), encoder.states, 32) and states.isfinite().all()
    if name == "s2v" and fps == 30:
        half = encoder.encode(speech(1), sample_rate=RATE, fps=15)
        assert torch.equal(half[:14], states[:28:2])


@pytest.mark.parametrize("name", ["multitalk", "s2v"])
def test_a_part_of_a_long_sound_lies_near_the_whole(wav2vec2: Path, name: str) -> None:
    """In the middle of a part the rows are those of the whole but for what reaches over all of it."""
    encoder = load_audio_encoder(wav2vec2, preset=PRESETS[name])
    sound = speech(12)
    whole = encoder.encode(sound, sample_rate=RATE, fps=25, frames=310)
    prepared = encoder.prepared(sound, RATE)
    part = encoder.encode_part(prepared, range(100, 200), 25)
    difference = (part - whole[100:200])[20:80].norm() / whole[120:180].norm()
    assert part.shape == whole[100:200].shape and difference < 0.2
    everything = encoder.encode_part(prepared, range(310), 25)
    torch.testing.assert_close(everything, whole, atol=1e-4, rtol=0)
    if name == "s2v":
        assert not encoder.encode_part(prepared, range(300, 310), 25).any(), "beyond the sound"


@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_loudness_is_pyloudnorms(seconds: float) -> None:
    sound = speech(seconds)
    meter = pyloudnorm.Meter(RATE)
    found = meter.integrated_loudness(sound.double().numpy())
    expected = pyloudnorm.normalize.loudness(sound.double().numpy(), found, -23.0)
    torch.testing.assert_close(at_loudness(sound, -23.0), torch.from_numpy(expected).float(), atol=1e-6, rtol=0)
    assert meter.integrated_loudness(at_loudness(sound, -16.0).double().numpy()) == pytest.approx(-16.0, abs=1e-3)


def test_what_has_no_loudness_stays_as_it_is() -> None:
    """Silence (MultiTalk's rule), and sounds shorter than the 0.4 s that loudness is measured over."""
    for sound in (torch.zeros(RATE), speech(0.4), 1e-9 * speech(1)):
        assert torch.equal(at_loudness(sound, -23.0), sound)


@pytest.mark.parametrize(("text", "lufs"), [("-23", -23.0), ("-14.5", -14.5), ("-23 LUFS", -23.0), ("none", None),
                                            ("as it is", None)])
def test_loudness_is_read(text: str, lufs: float | None) -> None:
    assert parse_loudness(text) == lufs
    preset = find_preset("multitalk", text)
    assert preset.lufs == lufs and find_preset("multitalk", preset.loudness) == preset


@pytest.mark.parametrize("text", ["loud", "23", "-71", "-23dB", ""])
def test_other_loudness_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--audio_loudness"):
        parse_loudness(text)


def test_facts_are_those_of_the_loaded_model(wav2vec2: Path, whisper: Path) -> None:
    for name, preset in PRESETS.items():
        folder = whisper if preset.model == "whisper" else wav2vec2
        encoder, facts = load_audio_encoder(folder, preset=preset), audio_facts(folder, preset)
        assert {key: getattr(encoder, key) for key in facts} == facts, name
        rows = encoder.encode(speech(0.2), sample_rate=RATE, fps=25)
        assert rows.shape[1:] == (facts["states"], facts["width"])


def test_each_preset_asks_for_its_own_kind_of_model(wav2vec2: Path, whisper: Path) -> None:
    with pytest.raises(WeightsError, match="'wav2vec2', not 'whisper'.*--audio_preset omniavatar"):
        load_audio_encoder(wav2vec2, preset=PRESETS["whisper"])
    with pytest.raises(WeightsError, match="'whisper', not 'wav2vec2'.*--audio_preset whisper"):
        load_audio_encoder(whisper, preset=PRESETS["s2v"])


def test_scope_follows_the_preset_where_nobody_says() -> None:
    assert {name: scope_of(preset, None) for name, preset in PRESETS.items()} == {
        "omniavatar": "file", "multitalk": "file", "s2v": "file", "fantasy": "clip", "whisper": "file"}
    assert scope_of(PRESETS["s2v"], "clip") == "clip"
