"""A generation hears as its network's training did; what cannot be read is refused before a model loads."""

from pathlib import Path
import shutil
from typing import Any

import pytest
import torch

from common.errors import ConfigError, NetworkFileError, WeightsError
from common.tensorfile import load_tensors, save_tensors
from common.timebase import full_chunk_rows
from inference import load_pipeline
from inference.inputs import hear_sounds
from networks.metadata import Origin
from tests.inference.conftest import Ask
import wan
from wan.audio_presets import find_preset
from wan.conditions.prepare import prepare_conditions
from wan.conditions.registry import build_condition


@pytest.fixture
def trained(audio_lora: Path, tmp_path: Path) -> Any:
    """Writes the LoRA anew as if its sound had been encoded with the options: ``trained(preset="multitalk")``."""
    def make(**options: str) -> Path:
        tensors, metadata = load_tensors(audio_lora)
        path = tmp_path / f"trained{len(list(tmp_path.iterdir()))}.safetensors"
        save_tensors(path, tensors, metadata | Origin(encoders={"audio": {"options": options}}).text())
        return path
    return make


@pytest.mark.parametrize(("options", "asked", "expected"), [
    ({}, None, find_preset("omniavatar")),
    ({"preset": "s2v", "loudness": "as it is"}, None, find_preset("s2v")),
    ({"preset": "omniavatar", "loudness": "-20 LUFS"}, None, find_preset("omniavatar", "-20")),
    ({"preset": "omniavatar", "loudness": "-20 LUFS"}, "omniavatar", find_preset("omniavatar", "-20")),
    ({"preset": "omniavatar", "loudness": "-20 LUFS"}, "s2v", find_preset("s2v")),
    ({}, "s2v", find_preset("s2v")),
])
def test_the_recorded_preset_is_used_unless_another_is_asked_for(ask_talking: Ask, trained: Any, asked: str | None,
                                                                 options: dict[str, str], expected: Any,
                                                                 caplog: pytest.LogCaptureFixture) -> None:
    pipeline = load_pipeline(ask_talking(lora_weight=[trained(**options)], audio_preset=asked))
    assert pipeline.files.preset == expected and pipeline.models.get("audio_encoder").preset == expected
    assert ("was trained with omniavatar" in caplog.text) == (asked == "s2v" and bool(options)), "only what is known"
    plan = pipeline.plan(pipeline.models.request)
    assert plan.request.audio_preset == expected.name, "the settings that make the result again name it"


def test_the_sound_is_heard_by_the_preset(ask_talking: Ask, trained: Any, tiny_weights: Path) -> None:
    pipeline = load_pipeline(ask_talking(lora_weight=[trained(preset="s2v")]))
    plan = pipeline.plan(pipeline.models.request)
    prepared = pipeline.prepare(plan)
    [voice] = plan.scene.voices
    encoder = wan.load_audio_encoder(tiny_weights / "wav2vec2-base-960h", preset=find_preset("s2v"))
    expected = encoder.encode(torch.from_numpy(voice.mono_16k), sample_rate=16_000, fps=25, frames=plan.sound_rows)
    assert torch.equal(prepared.batch.features["audio"]["states"][0], expected)


def no_model(*args: object, **settings: object) -> None:
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize(("options", "asked", "message"), [
    ({}, "fantasy", "rows at 50 Hz, and the condition 'omniavatar_add' reads a row for each video frame"),
    ({}, "multitalk", "gives 2 states of width 32; the condition 'omniavatar_add' reads 3 states of width 32"),
    ({"preset": "multitalk"}, None, "gives 2 states of width 32.*chinese-wav2vec2-base"),
])
def test_rows_that_no_condition_reads_are_refused(ask_talking: Ask, trained: Any, options: dict[str, str],
                                                  asked: str | None, message: str, monkeypatch: pytest.MonkeyPatch
                                                  ) -> None:
    monkeypatch.setattr(wan, "load_dit", no_model, raising=False)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_pipeline(ask_talking(lora_weight=[trained(**options)], audio_preset=asked))


def test_a_preset_of_a_later_version_is_refused(ask_talking: Ask, trained: Any) -> None:
    with pytest.raises(NetworkFileError, match="the preset 'whispers'.*nearest: 'whisper'.*does not know"):
        load_pipeline(ask_talking(lora_weight=[trained(preset="whispers")]))


def test_another_kind_of_encoder_is_refused(ask_talking: Ask, tiny_weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_weights / "wav2vec2-base-960h", folder)
    (folder / "config.json").write_text('{"model_type": "whisper"}', encoding="utf-8")
    with pytest.raises(WeightsError, match="'whisper', not 'wav2vec2'.*--audio_preset whisper"):
        load_pipeline(ask_talking(wav2vec=folder))


def test_sound_is_padded_as_in_training_and_the_padding_leaves_no_row(ask_talking: Ask, trained: Any) -> None:
    """0.5 s are 13 rows; chunks of 9 frames that share 5 are full at 16."""
    settings = {"chunk_frames": 9, "overlap_frame": 5}
    heard = {}
    for padding in ("full chunks of 9 frames, overlap 5", "zeros at the end after normalisation"):
        pipeline = load_pipeline(ask_talking(lora_weight=[trained(padding=padding)], **settings))
        plan = pipeline.plan(pipeline.models.request)
        encoder: Any = pipeline._encoder("audio", plan)
        [sound] = hear_sounds(encoder, plan)
        heard[padding[:4]] = sound["states"]
        assert len(sound["states"]) == plan.sound_rows
        assert plan.rows_heard(13) == (full_chunk_rows(13, 9, 5) if padding.startswith("full") else 13)
    assert full_chunk_rows(13, 9, 5) == 16
    assert heard["full"].shape == heard["zero"].shape and not torch.equal(heard["full"], heard["zero"])


def test_a_published_file_of_multitalk_hears_as_multitalk(ask_talking: Ask, tiny_weights: Path, tmp_path: Path) -> None:
    """Its sizes tell what is read of a frame: the two layers that the preset gives of the tiny encoder."""
    variant = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors").variant
    small = {"audio_hidden": "16", "audio_tokens": "3", "token_width": "32"}
    condition = build_condition("frame_xattn", {"audio_states": "3", "audio_width": "32", **small}, variant)
    path = tmp_path / "multitalk.safetensors"
    save_tensors(path, condition.state_dict(), {})
    pipeline = load_pipeline(ask_talking(lora_weight=[path], image_path=None))
    assert pipeline.files.preset == find_preset("multitalk")
    prepared = pipeline.prepare(pipeline.plan(pipeline.models.request))
    states = prepared.batch.features["audio"]["states"]
    assert states.shape[2:] == (2, 32)
    [own] = pipeline.models.get("conditions").values()
    rows = own.voices(prepared.batch, (4, 2, 3)).rows[0]
    assert torch.equal(rows[:, 2:-2], states), "no layer is left out"
    assert len(prepare_conditions({"frame_xattn": own}, prepared.batch, (4, 4, 6))["frame_xattn"].sound) == 1


def test_what_the_training_heard_otherwise_is_told_in_a_line(ask_talking: Ask, trained: Any,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pipeline = load_pipeline(ask_talking(lora_weight=[trained(scope="clip", recipe="0")]))
        pipeline._encoder("audio", pipeline.plan(pipeline.models.request))
    assert "was trained on clips that were heard alone" in caplog.text
    assert "an earlier recipe (0, now 1)" in caplog.text
