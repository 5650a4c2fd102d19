"""Generation with audio conditions: files of OmniAvatar's form, strength by block, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from common.errors import ConditionError, ConfigError, NetworkFileError
from common.tensorfile import load_tensors, save_tensors
from inference import generate, load_pipeline
from inference.forward import ClipVelocity
from inference.guidance import CONDITIONAL, ClassifierFree
from inference.pipeline import noise_for
from networks.condition_weights import condition_tensors
from networks.metadata import Origin
from tools.export_network import main as export
from wan.conditions.registry import build_condition
from wan.weights.dit import inspect_dit


@pytest.fixture
def released(audio_lora: Path, tiny_weights: Path, tmp_path: Path) -> Path:
    """The trained network as OmniAvatar would write it."""
    path = tmp_path / "omniavatar" / "pytorch_model.pt"
    path.parent.mkdir()
    export([str(audio_lora), "--dit", str(tiny_weights / "wan2.1_t2v_tiny.safetensors"), "--output", str(path),
            "--dtype", "float32"])
    return path


def _conditions(pipeline):
    return {name: condition.state_dict() for name, condition in pipeline.models.get("conditions").items()}


def test_a_file_of_omniavatars_form_is_the_network_that_it_was_made_from(ask_talking, audio_lora, released):
    ours, theirs = (load_pipeline(ask_talking(lora_weight=[path])) for path in (audio_lora, released))
    for key, tensor in ours.models.get("dit").state_dict().items():
        torch.testing.assert_close(theirs.models.get("dit").state_dict()[key], tensor, atol=1e-6, rtol=1e-5)
    [mine], [its] = (_conditions(pipeline).values() for pipeline in (ours, theirs))
    assert mine.keys() == its.keys()
    for key, tensor in mine.items():
        torch.testing.assert_close(its[key], tensor, atol=1e-6, rtol=1e-5)


def test_the_gain_of_the_request_rules_the_condition(ask_talking, audio_lora):
    plain = load_pipeline(ask_talking(lora_weight=[audio_lora])).models.get("conditions")["omniavatar_add"]
    block = plain.blocks_heard[0]
    louder = load_pipeline(ask_talking(lora_weight=[audio_lora], audio_gain=f"{block}:2"))
    assert plain.gains == {}
    assert louder.models.get("conditions")["omniavatar_add"].gains == {block: 2.0}


def test_a_gain_for_blocks_that_do_not_hear_is_refused_before_models_load(ask_talking, audio_lora):
    with pytest.raises(ConditionError, match="audio_gain '90:0.5' names no block that hears"):
        load_pipeline(ask_talking(lora_weight=[audio_lora], audio_gain="90:0.5"))


def test_a_gain_without_an_audio_condition_is_refused(ask):
    with pytest.raises(ConfigError, match="--audio_gain 0.5: no file of --lora_weight has an audio condition"):
        load_pipeline(ask(audio_gain="0.5"))


def test_two_files_with_two_audio_designs_are_refused(ask_talking, audio_lora, tiny_weights, tmp_path):
    variant = inspect_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors").variant
    other = build_condition("gated_lite", {"audio_states": "3", "audio_width": "32"}, variant)
    path = tmp_path / "lite.safetensors"
    save_tensors(path, condition_tensors({"gated_lite": other}),
                 Origin(conditions={"gated_lite": other.settings_text()}).text())
    with pytest.raises(ConditionError, match="omniavatar_add and gated_lite both hear the sound"):
        load_pipeline(ask_talking(lora_weight=[audio_lora, path]))


@pytest.mark.parametrize(("family", "names"), [
    ("i2v", ("frame_xattn",)), ("i2v", ("gated_lite",)), ("t2v", ("frame_xattn",)),
    ("t2v", ("gated_lite", "reference_channels"))])
def test_the_sound_moves_the_picture_in_every_design(ask, tiny_weights, speech, face, tmp_path, family, names):
    variant = inspect_dit(tiny_weights / f"wan2.1_{family}_tiny.safetensors").variant
    source = torch.Generator().manual_seed(3)
    conditions = {}
    for name in names:
        settings = {} if name == "reference_channels" else {"audio_states": "3", "audio_width": "32"}
        conditions[name] = build_condition(name, settings, variant)
        for parameter in conditions[name].parameters():
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    path = tmp_path / "trained.safetensors"
    save_tensors(path, condition_tensors(conditions),
                 Origin(conditions={name: one.settings_text() for name, one in conditions.items()}, fps=25.0).text())
    pictured = {"image_path": face} if family == "i2v" or "reference_channels" in names else {}

    def video(**more):
        return generate(ask(family, lora_weight=[path], audio=speech, wav2vec=tiny_weights / "wav2vec2-base-960h",
                            video_length=5, guidance_scale=1, **pictured, **more)).video

    heard = video()
    assert heard.shape[1] == 5 and heard.isfinite().all()
    assert not torch.equal(heard, video(audio_gain="0"))
    assert torch.equal(heard, video(audio_gain="1"))


@pytest.fixture
def trained_with(audio_lora, tmp_path):
    """Function that gives the trained network as one whose given frames entered in another mode."""
    def write(mode):
        tensors, metadata = load_tensors(audio_lora)
        told = json.loads(metadata["omnituner.conditions"])
        told["omniavatar_add"]["given"] = mode
        path = tmp_path / f"{mode}.safetensors"
        save_tensors(path, tensors, metadata | {"omnituner.conditions": json.dumps(told)})
        return path

    return write


@pytest.mark.parametrize("mode", ["clean_same_t", "t0", "noised"])
def test_given_frames_enter_a_generation_as_they_did_in_training(ask_talking, trained_with, mode):
    request = ask_talking(lora_weight=[trained_with(mode)], video_length=9)
    pipeline = load_pipeline(request)
    prepared = pipeline.prepare(pipeline.plan(request))
    noise = noise_for(prepared.plan)
    velocity = ClipVelocity(pipeline.models.get("dit"), pipeline.models.get("conditions"), prepared,
                            ClassifierFree(1.0), noise)
    assert velocity.given is not None and velocity.given.mode == mode
    clean = prepared.batch.given_latents[:, :, 0]
    shown = velocity.write_given(noise, 0.75)
    expected = 0.25 * clean + 0.75 * noise[:, :, 0] if mode == "noised" else clean
    torch.testing.assert_close(shown[:, :, 0], expected)
    assert torch.equal(shown[:, :, 1:], noise[:, :, 1:])
    assert velocity(shown, 0.75, 750.0, CONDITIONAL).isfinite().all()
    assert torch.equal(velocity.write_given(noise, 0.0)[:, :, 0], clean)
    assert generate(request).video.isfinite().all()


def test_a_file_trained_in_another_mode_is_not_written_as_omniavatars(trained_with, tiny_weights, tmp_path):
    with pytest.raises(NetworkFileError, match="was trained with given = noised"):
        export([str(trained_with("noised")), "--dit", str(tiny_weights / "wan2.1_t2v_tiny.safetensors"), "--output",
                str(tmp_path / "out.pt")])
