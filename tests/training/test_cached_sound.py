"""Sound that was encoded otherwise than a run needs is refused before a model loads, by option and with the command."""

from collections.abc import Callable
import json
from pathlib import Path
import shutil
from typing import Any

import pytest
from safetensors import safe_open
import torch

from common.errors import CacheError
from common.tensorfile import load_tensors, save_tensors
from precompute import ModelFiles, run
from precompute.models import AudioOptions
from tests.training.runs import settings
from training import preflight, train
from training.clips import read_one
import wan
from wan.audio_presets import find_preset
from wan.encoders.features.audio import ChunkPadding

SMALL = ["frame_xattn.audio_hidden=16", "frame_xattn.audio_tokens=3", "frame_xattn.token_width=32"]
Heard = Callable[..., Path]


@pytest.fixture
def heard(talking: Path, weights: Path, tmp_path: Path) -> Heard:
    """Makes a copy of the dataset whose sound is encoded with other options: ``heard(preset=…)``."""
    def make(preset: str = "omniavatar", loudness: str | None = None, **options: Any) -> Path:
        folder = tmp_path / f"{preset}{len(list(tmp_path.iterdir()))}"
        shutil.copytree(talking.parent, folder)
        data = folder / talking.name
        data.write_text(talking.read_text(encoding="utf-8").replace(talking.parent.as_posix(), folder.as_posix()),
                        encoding="utf-8")
        audio = AudioOptions(find_preset(preset, loudness), **options)
        assert not run(["audio"], data, models=ModelFiles(wav2vec=weights / "wav2vec2-base-960h", audio=audio)).failed
        return data
    return make


@pytest.fixture(scope="module")
def start(talking: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with `omniavatar_add`, trained on sound as OmniAvatar hears it."""
    out = tmp_path_factory.mktemp("start")
    final = train(settings(talking, weights, out, network_args=["conditions=omniavatar_add"], max_train_steps=1))
    assert final is not None
    return final


def no_model(*args: object, **settings: object) -> None:
    raise AssertionError("a model was loaded")


def test_what_it_was_trained_on_is_in_the_file(start: Path) -> None:
    with safe_open(start, "pt") as file:
        told = json.loads(file.metadata()["omnituner.encoders"])["audio"]
    assert told["fingerprint"]
    assert {"preset": "omniavatar", "states": "all 3", "width": "32", "loudness": "as it is", "scope": "file",
            "padding": "zeros at the end after normalisation"}.items() <= told["options"].items()


@pytest.mark.parametrize(("options", "message"), [
    ({"preset": "multitalk"}, "preset 'multitalk'.*was trained with 'omniavatar'.*--audio_preset omniavatar"),
    ({"preset": "fantasy"}, "audio_preset: the cached sound has preset 'fantasy'[^\n]*wav2vec2-base-960h(\n|$)"),
    ({"loudness": "-16"}, "audio_loudness: the cached sound has loudness '-16 LUFS'.*trained with 'as it is'"),
])
def test_going_on_with_other_sound_is_refused(heard: Heard, weights: Path, start: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
                                              ) -> None:
    monkeypatch.setattr(wan, "load_dit", no_model, raising=False)
    with pytest.raises(CacheError, match=f"(?s){message}"):
        train(settings(heard(**options), weights, tmp_path / "out", network_weights=start, network_dim=None,
                       network_alpha=1, dim_from_weights=True))


def test_another_scope_is_told_in_a_line(heard: Heard, weights: Path, start: Path, tmp_path: Path,
                                         caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        preflight.check(settings(heard(scope="clip"), weights, tmp_path / "out", network_weights=start,
                                 network_dim=None, network_alpha=1, dim_from_weights=True))
    assert "the cached sound has scope 'clip'; t.safetensors was trained with 'file' (accepted)" in caplog.text


def test_another_rate_and_another_encoder_are_told(talking: Path, weights: Path, start: Path, tmp_path: Path,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    tensors, metadata = load_tensors(start)
    encoders = json.loads(metadata["omnituner.encoders"])
    encoders["audio"]["fingerprint"] = "another"
    save_tensors(tmp_path / "other.safetensors", tensors,
                 metadata | {"omnituner.fps": "30.0", "omnituner.encoders": json.dumps(encoders)})
    with caplog.at_level("INFO"):
        preflight.check(settings(talking, weights, tmp_path / "out", network_weights=tmp_path / "other.safetensors",
                                 network_dim=None, network_alpha=1, dim_from_weights=True))
    assert "the clips have 25 fps; other.safetensors was trained at 30 fps (accepted)" in caplog.text
    assert "was trained with other weights than --wav2vec" in caplog.text


def test_the_command_keeps_what_else_was_chosen(heard: Heard, weights: Path, tmp_path: Path) -> None:
    """Following it changes nothing but what was wrong."""
    data = heard("multitalk", "none", scope="clip", padding=ChunkPadding(41, overlap=5))
    with pytest.raises(CacheError) as caught:
        train(settings(data, weights, tmp_path / "out", network_args=["conditions=gated_lite,reference_channels",
                                                                      "gated_lite.null=silence"]))
    assert ("--audio_preset multitalk --wav2vec FOLDER_OF_chinese-wav2vec2-base --audio_loudness none --audio_scope "
            "clip --audio_padding chunk --chunk_frames 41 --overlap_frame 5 --audio_silence") in str(caught.value)


@pytest.mark.parametrize(("arguments", "options", "message"), [
    (["omniavatar_add.audio_states=13", "omniavatar_add.audio_width=768"], {},
     "reads 13 states of width 768 of a frame; the cache of --audio_preset omniavatar holds 3 states of width 32"),
    (["omniavatar_add.null=silence"], {}, "null=silence.*holds none.*cache_audio_features.py.*--audio_silence"),
    ([], {"preset": "fantasy"}, "--audio_preset fantasy: its rows stand at 50 Hz.*--audio_preset omniavatar"),
])
def test_a_condition_that_cannot_read_the_cache_is_told_before_a_model_loads(
        heard: Heard, weights: Path, tmp_path: Path, arguments: list[str], options: dict[str, str], message: str,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan, "load_dit", no_model, raising=False)
    with pytest.raises(CacheError, match=f"(?s){message}"):
        train(settings(heard(**options), weights, tmp_path / "out",
                       network_args=["conditions=omniavatar_add", *arguments]))


def test_silence_of_the_cache_is_heard_where_sound_is_absent(heard: Heard, weights: Path, tmp_path: Path) -> None:
    data = heard(more=("silence",))
    config = settings(data, weights, tmp_path / "out", network_args=["conditions=omniavatar_add",
                                                                     "omniavatar_add.null=silence"])
    plan = preflight.check(config)
    batch = read_one(plan.clips[0]).features
    assert batch.features["audio"]["silence"].shape == batch.features["audio"]["states"].shape
    final = train(config)
    with safe_open(final, "pt") as file:
        assert json.loads(file.metadata()["omnituner.conditions"])["omniavatar_add"]["null"] == "silence"


def test_a_clip_without_sound_gets_encoded_silence(heard: Heard, weights: Path, root: Path, tmp_path: Path) -> None:
    """Its `silence` is that of another clip, and not the zeros that stand for its states."""
    data = heard(more=("silence",))
    (mute := data.parent / "mute").mkdir()
    for suffix in (".mp4", ".txt"):
        shutil.copy(root / "examples" / "demo" / "clips" / f"head_006{suffix}", mute)
    folder = data.parent.as_posix()
    data.write_text(data.read_text(encoding="utf-8") + f'[[datasets]]\nvideo_directory = "{folder}/mute"\n'
                    f'cache_directory = "{folder}/mute-cache"\ntarget_fps = 25\ntarget_frames = [9]\n',
                    encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        wav2vec=weights / "wav2vec2-base-960h", audio=AudioOptions(more=("silence",)))
    assert not run(["latents", "text", "audio"], data, models=models).failed
    config = settings(data, weights, tmp_path / "out", network_args=["conditions=omniavatar_add",
                                                                     "omniavatar_add.null=silence"])
    clips = preflight.check(config).clips
    batches = {clip.item.name: read_one(clip).features for clip in clips}
    spoken, silent = batches["head_000.mp4"], batches["head_006.mp4"]
    assert not silent.present["audio"].any() and not silent.features["audio"]["states"].any()
    assert torch.equal(silent.features["audio"]["silence"], spoken.features["audio"]["silence"])
    assert silent.features["audio"]["silence"].any()


def test_a_fresh_frame_xattn_reads_all_that_multitalk_keeps(heard: Heard, weights: Path, tmp_path: Path) -> None:
    """On either cache its projection is as wide: the layers, with or without the input that it leaves out."""
    widths = []
    for name in ("multitalk", "omniavatar"):
        plan = preflight.check(settings(heard(name), weights, tmp_path / name,
                                        network_args=["conditions=frame_xattn,reference_channels", *SMALL]))
        condition: Any = plan.conditions["frame_xattn"]
        widths.append((condition.settings.audio_states, condition.audio_proj.proj1.in_features))
    assert widths == [(3, 5 * 2 * 32)] * 2


def test_caches_from_before_presets_count_as_omniavatars(talking: Path, weights: Path, start: Path, tmp_path: Path
                                                         ) -> None:
    """A file and a cache whose options name no preset go together."""
    folder = tmp_path / "old"
    shutil.copytree(talking.parent, folder)
    data = folder / talking.name
    data.write_text(talking.read_text(encoding="utf-8").replace(talking.parent.as_posix(), folder.as_posix()),
                    encoding="utf-8")
    new = ("option.preset", "option.width", "option.rate", "option.loudness")
    for path in (folder / "cache").glob("*.audio.safetensors"):
        tensors, header = load_tensors(path)
        save_tensors(path, tensors, {key: value for key, value in header.items() if key not in new})
    index = folder / "cache" / "omnituner-index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    options = content["features"]["audio"]["options"]
    content["features"]["audio"]["options"] = {key: value for key, value in options.items()
                                               if f"option.{key}" not in new}
    index.write_text(json.dumps(content), encoding="utf-8")
    plan = preflight.check(settings(data, weights, tmp_path / "out", network_weights=start, network_dim=None,
                                    network_alpha=1, dim_from_weights=True))
    assert plan.start is not None
