"""Training end to end on the tiny weights: cached clips in, a file that loads out."""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch

from common.config import to_toml
from common.errors import CacheError, ConfigError, NetworkFileError, UserError, WeightsError
from precompute import ModelFiles, run
from tests.demo_clips import toml_text, write_toml
from tests.training.runs import CLIPS, losses, prepare_data, settings, validations
from training import train
from training.loop import NonFiniteLoss
import wan


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Dataset with what image-to-video needs."""
    return prepare_data(tmp_path_factory.mktemp("pictured"), root, weights,
                        ["latents", "text", "image_latents", "clip"])


def test_a_lora_is_trained_and_saved_with_what_made_it(talking: Path, weights: Path, tmp_path: Path) -> None:
    final = train(settings(talking, weights, tmp_path, save_every_n_epochs=1, max_train_steps=7))
    assert final == tmp_path / "t.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "loss_history.json", "loss_history.png", "metrics.jsonl", "run_summary.md", "settings.toml",
        "t-000001.safetensors", "t-step00000007-state", "t.safetensors", "timesteps.png", "training_state.json"]
    with safe_open(final, "pt") as file:
        told = file.metadata()
        assert "lora_unet_blocks_0_self_attn_q.lora_down.weight" in file.keys()  # noqa: SIM118
    assert (told["ss_steps"], told["ss_epoch"], told["ss_network_dim"]) == ("7", "2", "4")
    assert (told["omnituner.task"], told["omnituner.fps"]) == ("t2v-14B", "25.0")
    assert told["omnituner.picture_mode"] == "cover"
    assert "text" in json.loads(told["omnituner.encoders"])
    assert len(losses(tmp_path)) == 7
    up = [tensor for key, tensor in load_file(final).items() if "lora_up" in key]
    assert all(tensor.abs().max() > 0 for tensor in up)


def test_the_same_settings_give_the_same_weights(talking: Path, weights: Path, tmp_path: Path) -> None:
    first = load_file(train(settings(talking, weights, tmp_path / "a", network_dropout=0.2)) or "")
    again = load_file(train(settings(talking, weights, tmp_path / "b", network_dropout=0.2)) or "")
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_checkpointing_changes_no_number(talking: Path, weights: Path, tmp_path: Path) -> None:
    more = {"network_args": ["conditions=omniavatar_add"], "network_dropout": 0.1}
    plain = load_file(train(settings(talking, weights, tmp_path / "a", **more)) or "")
    spared = load_file(train(settings(talking, weights, tmp_path / "b", gradient_checkpointing=True, **more)) or "")
    assert max((plain[key] - spared[key]).abs().max().item() for key in plain) <= 1e-6


def test_the_audio_condition_is_trained_beside_the_lora(talking: Path, weights: Path, tmp_path: Path) -> None:
    final = train(settings(talking, weights, tmp_path, network_args=["conditions=omniavatar_add"]))
    tensors = load_file(final or "")
    moved = {key for key, tensor in tensors.items() if key.startswith("conditions.") and tensor.abs().max() > 0}
    assert "conditions.omniavatar_add.audio_proj.norm_out.weight" in moved
    assert "conditions.omniavatar_add.patch_embedding.weight" in moved
    with safe_open(final, "pt") as file:
        told = json.loads(file.metadata()["omnituner.conditions"])["omniavatar_add"]
    assert (told["audio_states"], told["audio_width"]) == ("3", "32")


def test_a_condition_at_a_rate_of_its_own_is_told_and_what_the_run_starts_from_is_kept(
        talking: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        final = train(settings(talking, weights, tmp_path, save_at_first=True, lr_scheduler="linear",
                               network_args=["conditions=omniavatar_add", "condition_lr=1e-2"]))
    assert "learning rate 0.001 (lora), 0.01 (conditions)" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert [one["lora"] for one in rates] == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4])
    assert [one["conditions"] for one in rates] == pytest.approx([1e-2, 8e-3, 6e-3, 4e-3, 2e-3])
    first, last = load_file(tmp_path / "t-step00000000.safetensors"), load_file(final or "")
    assert first.keys() == last.keys()
    assert not any(tensor.any() for key, tensor in first.items() if "lora_up" in key or "patch_embedding" in key)
    assert any(tensor.any() for key, tensor in last.items() if "patch_embedding" in key)


def test_training_goes_on_from_a_file_with_its_condition(talking: Path, weights: Path, tmp_path: Path) -> None:
    start = train(settings(talking, weights, tmp_path / "a", network_args=["conditions=omniavatar_add"]))
    again = train(settings(talking, weights, tmp_path / "b", network_weights=start, network_dim=None, network_alpha=1,
                           dim_from_weights=True, learning_rate=1e-12))
    before, after = load_file(start or ""), load_file(again or "")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-7) for key in before)


def test_image_to_video_reads_mask_latents_and_clip(pictured: Path, weights: Path, tmp_path: Path) -> None:
    final = train(settings(pictured, weights, tmp_path, task="i2v-14B", dit=weights / "wan2.1_i2v_tiny.safetensors"))
    assert any("cross_attn_k_img" in key for key in load_file(final or ""))
    assert all(loss > 0 for loss in losses(tmp_path))


@pytest.mark.parametrize(("task", "features"), [
    ("t2v-1.3B-FC", ("latents", "text", "control_latents")),
    ("i2v-14B-FC", ("latents", "text", "control_latents", "image_latents", "clip")),
])
def test_fun_control_training_reads_the_control_video(task: str, features: Sequence[str], control_dit: Path, root: Path,
                                                      weights: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "examples" / "demo" / "clips", tmp_path / "controls")
    (tmp_path / "clips").mkdir()
    for name in ("head_000.mp4", "head_000.txt"):
        shutil.copy(tmp_path / "controls" / name, tmp_path / "clips")
    data = tmp_path / "data.toml"
    data.write_text(toml_text(tmp_path).replace('audio = "clip"\n', "")
                    + f'control_directory = "{(tmp_path / "controls").as_posix()}"\n', encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        clip=weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth")
    assert not run(list(features), data, models=models).failed
    final = train(settings(data, weights, tmp_path / "out", task=task, dit=control_dit, max_train_steps=2))
    assert any("lora_up" in key and tensor.abs().max() > 0 for key, tensor in load_file(final or "").items())
    assert len(losses(tmp_path / "out")) == 2


def test_base_weights_are_merged_before_training(talking: Path, weights: Path, tmp_path: Path) -> None:
    base = train(settings(talking, weights, tmp_path / "base", learning_rate=0.03, max_train_steps=20))
    for fp8 in (False, True):
        plain = settings(talking, weights, tmp_path / f"plain{fp8}", fp8_base=fp8, max_train_steps=1)
        merged = settings(talking, weights, tmp_path / f"merged{fp8}", fp8_base=fp8, max_train_steps=1,
                          base_weights=[base], base_weights_multiplier=[1.0])
        train(plain)
        train(merged)
        assert abs(losses(tmp_path / f"plain{fp8}")[0] - losses(tmp_path / f"merged{fp8}")[0]) > 1e-4


def test_a_trained_file_attaches_to_the_base_again(talking: Path, weights: Path, tmp_path: Path) -> None:
    from networks.attach import attach_lora
    from networks.merge import merge_transform

    final = train(settings(talking, weights, tmp_path, learning_rate=0.01))
    assert final is not None
    base = weights / "wan2.1_t2v_tiny.safetensors"
    attached, merged = wan.load_dit(base), wan.load_dit(base, transform=merge_transform([(final, 1.0)]))
    inputs = (torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), [torch.randn(5, 64)])
    plain = attached(*inputs)
    _, report = attach_lora(attached, final)
    assert (report.applied, report.unused) == (40, [])
    with torch.no_grad():
        torch.testing.assert_close(attached(*inputs), merged(*inputs), atol=2e-4, rtol=0)
        assert (attached(*inputs) - plain).abs().max() > 1e-4


def test_first_and_last_frame_training_reads_both_pictures(tmp_path: Path, root: Path, weights: Path) -> None:
    data = prepare_data(tmp_path, root, weights, ["latents", "text", "image_latents", "clip"], given="first_last")
    final = train(settings(data, weights, tmp_path / "out", task="flf2v-14B",
                           dit=weights / "wan2.1_flf2v_tiny.safetensors"))
    assert final is not None and len(losses(tmp_path / "out")) == 5


def test_pictures_without_sound_are_trained_beside_talking_clips(tmp_path: Path, root: Path, weights: Path) -> None:
    import cv2

    from common.media.video import read_frames

    frame = read_frames(root / "examples" / "demo" / "clips" / "head_005.mp4", fps=25, count=1)[0]
    (tmp_path / "pictures").mkdir()
    cv2.imwrite(str(tmp_path / "pictures" / "face.png"), frame[..., ::-1])
    (tmp_path / "pictures" / "face.txt").write_text("A face.", encoding="utf-8")
    more = f'[[datasets]]\nimage_directory = "{(tmp_path / "pictures").as_posix()}"\n' \
           f'cache_directory = "{(tmp_path / "picture_cache").as_posix()}"\nnum_repeats = 2\n'
    data = prepare_data(tmp_path, root, weights, ["latents", "text", "audio"], more=more)
    final = train(settings(data, weights, tmp_path / "out", network_args=["conditions=omniavatar_add"],
                           max_train_epochs=1))
    assert final is not None and len(losses(tmp_path / "out")) == CLIPS + 2


def test_a_file_trained_with_sound_drives_a_generation(talking: Path, weights: Path, tmp_path: Path, root: Path
                                                       ) -> None:
    from inference import GenerationRequest, generate

    final = train(settings(talking, weights, tmp_path, network_args=["conditions=omniavatar_add"], learning_rate=0.01))
    assert final is not None
    request = {"dit": weights / "wan2.1_t2v_tiny.safetensors", "vae": weights / "Wan2.1_VAE.pth",
               "t5": weights / "models_t5_umt5-xxl-enc-bf16.pth", "wav2vec": weights / "wav2vec2-base-960h",
               "image_path": root / "examples/demo/unseen/face_1000.png",
               "audio": root / "examples/demo/unseen/speech_0.flac",
               "prompt": "A head talks.", "video_size": (32, 32), "infer_steps": 2, "video_length": 9, "seed": 1}
    made = generate(GenerationRequest.from_flags(**request, lora_weight=[final]))
    assert made.fps == 25.0 and made.video.shape[1:] == (9, 32, 32)
    weaker = generate(GenerationRequest.from_flags(**request, lora_weight=[final], lora_multiplier=[0.0]))
    assert not torch.equal(made.latents, weaker.latents)


def test_learning_that_breaks_down_names_the_clips_and_writes_nothing(talking: Path, weights: Path, tmp_path: Path
                                                                      ) -> None:
    with pytest.raises(NonFiniteLoss, match=r"head_00\d.mp4@0"):
        train(settings(talking, weights, tmp_path, learning_rate=1e25))
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(("more", "kind", "words"), [
    ({"task": "i2v-14B"}, WeightsError, "found t2v model"),
    ({"dit": "absent.safetensors"}, WeightsError, "not found"),
    ({"dataset_config": "absent.toml"}, ConfigError, "absent.toml"),
    ({"network_weights": "absent.safetensors"}, NetworkFileError, "no such file"),
    ({"network_weights": "START", "network_dim": 8}, NetworkFileError, "rank 4"),
    ({"network_weights": "START", "task": "i2v-14B", "dit": "I2V"}, NetworkFileError, "not in this model"),
    ({"network_args": ["conditions=omniavatar"]}, UserError, "omniavatar_add"),
    ({"network_args": ["exclude_patterns=['.*nothing.*']"]}, ConfigError, "matches nothing"),
    ({"optimizer_type": "AdmW"}, ConfigError, "nearest"),
    ({"lr_scheduler": "cosin"}, ConfigError, "nearest: 'cosine'"),
    ({"validation_count": 5}, ConfigError, "nothing is left to train on"),
    ({"lr_warmup_steps": 50}, ConfigError, "more than the 5 steps"),
    ({"attn_mode": "cudnn"}, ConfigError, "NVIDIA"),
    ({"network_args": ["condition_lr=1e-3"]}, ConfigError, "this run trains none"),
    ({"network_args": ["patch_lr=1e-3"]}, ConfigError, "this run trains none"),
])
def test_what_cannot_work_is_refused_before_weights_are_read(talking: Path, weights: Path, tmp_path: Path,
                                                             more: dict[str, Any], kind: type[UserError], words: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    if "attn_mode" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "network_weights" in more and more["network_weights"] == "START":
        more = {**more, "network_weights": train(settings(talking, weights, tmp_path / "start", max_train_steps=1))}
    if more.get("dit") == "I2V":
        more = {**more, "dit": weights / "wan2.1_i2v_tiny.safetensors"}
    monkeypatch.setattr(wan, "load_dit", lambda *args, **kwargs: pytest.fail("weights were read"), raising=False)
    with pytest.raises(kind, match=words):
        train(settings(talking, weights, tmp_path / "out", **more))
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_several_faults_are_told_together(talking: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 problems") as caught:
        train(settings(talking, weights, tmp_path, dit="absent.safetensors", optimizer_type="AdmW",
                       dataset_config="absent.toml"))
    assert "absent.toml" in str(caught.value)


def test_a_cache_that_is_missing_or_stale_names_the_command(talking: Path, weights: Path, tmp_path: Path, root: Path
                                                            ) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(talking.parent, folder)
    data = write_toml(folder, "batch1.toml")
    (folder / "clips" / "head_001.txt").write_text("Another caption.", encoding="utf-8")
    next((folder / "cache").glob("head_002*.latents.safetensors")).unlink()
    with pytest.raises(CacheError) as caught:
        train(settings(data, weights, tmp_path / "out"))
    text = str(caught.value)
    for piece in ("head_001", "the caption differs", "python cache_text_encoder_outputs.py", "head_002", "missing",
                  "python cache_latents.py"):
        assert piece in text, piece
    with pytest.raises(CacheError, match="python cache_latents.py"):
        train(settings(talking, weights, tmp_path / "out", task="i2v-14B", dit=weights / "wan2.1_i2v_tiny.safetensors"))


def test_noise_levels_are_shown_without_training(talking: Path, weights: Path, tmp_path: Path,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert train(settings(talking, weights, tmp_path, show_timesteps="console")) is None
    assert "noise levels of 'shift' at 32x32" in caplog.text
    assert train(settings(talking, weights, tmp_path, show_timesteps="image")) is None
    assert (tmp_path / "t-timesteps.png").is_file() and not (tmp_path / "t.safetensors").exists()


def test_caches_of_first_and_last_pictures_are_not_taken_for_first_ones(pictured: Path, weights: Path, tmp_path: Path
                                                                       ) -> None:
    with pytest.raises(CacheError, match="was made with the pictures 'first'; --task flf2v-14B is given 'first_last'"):
        train(settings(pictured, weights, tmp_path, task="flf2v-14B", dit=weights / "wan2.1_flf2v_tiny.safetensors"))


@pytest.mark.slow
def test_ctrl_c_ends_with_code_130_and_whole_files(talking: Path, weights: Path, tmp_path: Path, root: Path) -> None:
    words = ["--dataset_config", str(talking), "--dit", str(weights / "wan2.1_t2v_tiny.safetensors"), "--output_dir",
             str(tmp_path), "--max_train_steps", "100000", "--save_every_n_steps", "10", "--save_last_n_steps", "20"]
    run_ = subprocess.Popen([sys.executable, str(root / "train_network.py"), *words], stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    deadline = time.monotonic() + 60
    try:
        while not (tmp_path / "lora-step00000020.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        run_.send_signal(signal.SIGINT)
        _, told = run_.communicate(timeout=60)
    finally:
        run_.kill()
    assert run_.returncode == 130, told[-2000:]
    kept = sorted(tmp_path.glob("*.safetensors"))
    assert kept and "interrupted after step" in told and str(kept[-1]) in told
    assert all(load_file(path) for path in kept) and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_their_batch(talking: Path, weights: Path, tmp_path: Path, root: Path
                                                              ) -> None:
    # Adam divides a gradient by its own size, so that the last bit of a sum shows as a share of the learning rate.
    more: dict[str, Any] = {"learning_rate": 1e-5, "max_train_epochs": 2, "num_timestep_buckets": 3,
                            "network_args": ["conditions=omniavatar_add"], "validation_count": 2,
                            "validate_every_n_steps": 2, "prefix_dropout": 0.3, "audio_dropout": 0.3,
                            "text_dropout": 0.3, "random_length": True, "min_frames": 5, "max_tokens": 24}
    train(settings(write_toml(talking.parent, "batch2.toml", batch=2), weights, tmp_path / "one", **more))
    pytest.importorskip("tensorboard")
    two = settings(talking, weights, tmp_path / "two", log_with="tensorboard", logging_dir=tmp_path / "logs",
                   logit_mean=0.5, **more)
    (tmp_path / "two.toml").write_text(to_toml(two), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
               str(root / "train_network.py"), "--config_file", str(tmp_path / "two.toml")]
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                            check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("--logit_mean has no effect") == 1, "what all processes meet is told once"
    one, both = load_file(tmp_path / "one" / "t.safetensors"), load_file(tmp_path / "two" / "t.safetensors")
    assert one.keys() == both.keys()
    assert max((one[key] - both[key]).abs().max().item() for key in one) <= 1e-6
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)
    figures = [[(line["step"], line["held_out_loss"], line["clips"]) for line in validations(tmp_path / name)]
               for name in ("one", "two")]
    assert figures[0][0] == figures[1][0], "before the first step the weights are the same, so every bit must be"
    assert len(figures[0]) == len(figures[1]) > 2
    assert [line[1] for line in figures[0]] == pytest.approx([line[1] for line in figures[1]], rel=1e-5)
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert not list(tmp_path.rglob(".*"))
