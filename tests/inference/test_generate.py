"""Generation end to end on tiny weights: every kind of input, and what is written."""

import json

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.media.sound import read_sound
from common.media.video import probe_video, read_frames
from inference import decode_latents, generate
from inference.denoise import Step


def test_text_to_video_writes_a_video_of_the_asked_size_and_length(ask, tmp_path):
    result = generate(ask(video_length=9, save_path=tmp_path / "clip.mp4"))
    assert result.video.shape == (3, 9, 32, 48) and result.latents.shape == (16, 3, 4, 6)
    assert result.video.abs().max() <= 1 and result.video.std() > 0.01
    info = probe_video(tmp_path / "clip.mp4")
    assert (info.width, info.height, info.frames, info.fps, info.has_sound) == (48, 32, 9, 16, False)
    assert result.path == tmp_path / "clip.mp4" and (tmp_path / "clip.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4"]


def test_nothing_is_written_without_a_save_path(ask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = generate(ask(video_length=1))
    assert result.path is None and result.frames.shape == (1, 32, 48, 3) and result.frames.dtype == np.uint8
    assert list(tmp_path.iterdir()) == []


def test_image_to_video_starts_from_the_picture_in_its_own_shape(ask, face):
    result = generate(ask("i2v", image_path=face, video_length=5, guidance_scale=1))
    assert result.video.shape == (3, 5, 32, 32)  # 90x70 at the area of 48x32
    other = generate(ask("i2v", image_path=face, video_length=5, guidance_scale=1, prompt="another text"))
    assert not torch.equal(result.video, other.video)


def test_first_and_last_picture_both_count(ask, face, tmp_path):
    from PIL import Image

    last = tmp_path / "last.png"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(last)
    result = generate(ask("flf2v", image_path=face, end_image_path=last, video_length=5))
    same = generate(ask("flf2v", image_path=face, end_image_path=face, video_length=5))
    assert result.video.shape == same.video.shape == (3, 5, 32, 32)
    assert not torch.equal(result.video, same.video)


def test_a_picture_talks_for_as_long_as_the_sound(ask_talking, speech, tmp_path):
    result = generate(ask_talking(save_path=tmp_path / "talk.mp4"))
    assert result.fps == 25 and result.video.shape == (3, 13, 32, 48)  # ceil(0.5 s * 25), cropped to the asked size
    assert result.latents.shape[1] == 4
    info = probe_video(tmp_path / "talk.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (48, 32, 13, 25)
    written, given = read_sound(tmp_path / "talk.mp4"), read_sound(speech)
    assert written.sample_rate == given.sample_rate and written.samples.shape == given.samples.shape
    assert np.corrcoef(written.samples[0], given.samples[0])[0, 1] > 0.99
    record = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert record["result"]["features"] == ["audio", "reference_latents"]
    assert record["settings"]["audio_lead"] == 0.0 and record["result"]["generated_frames"] == 13


def test_the_first_latent_frame_is_the_picture_and_the_sound_changes_the_rest(ask_talking, tmp_path):
    import soundfile

    silent = tmp_path / "silence.wav"
    soundfile.write(silent, np.zeros(8000, np.float32), 16000)
    talking, quiet = generate(ask_talking()), generate(ask_talking(audio=silent))
    assert torch.equal(talking.latents[:, 0], quiet.latents[:, 0])
    assert not torch.equal(talking.latents[:, 1:], quiet.latents[:, 1:])


def test_a_lead_moves_the_sound_in_the_video_and_lengthens_it(ask_talking, speech, tmp_path):
    result = generate(ask_talking(audio_lead=0.2, save_path=tmp_path / "talk.mp4"))
    assert result.video.shape[1] == 18  # ceil(0.7 * 25)
    written, given = read_sound(tmp_path / "talk.mp4"), read_sound(speech)
    lead = round(0.2 * given.sample_rate)
    assert written.samples.shape[1] == given.samples.shape[1] + lead
    assert np.abs(written.samples[:, :lead - 50]).max() < 0.01
    assert np.corrcoef(written.samples[0, lead:], given.samples[0])[0, 1] > 0.99


def test_an_asked_length_cuts_the_sound(ask_talking, tmp_path):
    generate(ask_talking(video_length=5, save_path=tmp_path / "talk.mp4"))
    assert read_sound(tmp_path / "talk.mp4").duration_s == pytest.approx(0.2, abs=1e-3)


def test_the_json_makes_the_video_again_bit_for_bit(ask_talking, tmp_path, monkeypatch):
    from common.config import parse
    from inference.request import GenerationRequest

    first = generate(ask_talking(save_path=tmp_path / "talk.mp4", seed=None))
    monkeypatch.chdir(tmp_path)
    words = ["--config_file", "talk.json", "--save_path", "again.mp4"]
    again = parse(GenerationRequest, words, prog="generate_video.py", description="")
    second = generate(again)
    assert torch.equal(first.video, second.video) and torch.equal(first.latents, second.latents)
    records = [json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("talk.json", "again.json")]
    for key in ("settings", "result", "weights", "loras"):
        assert records[0][key] == records[1][key]


def test_latents_that_were_written_alone_become_a_video(ask, tmp_path):
    made = generate(ask(video_length=5, output_type="latent", save_path=tmp_path))
    [decoded] = decode_latents(ask(latent_path=[made.path], save_path=tmp_path / "later.mp4"))
    assert decoded.path == tmp_path / "later.mp4"
    assert decoded.path.is_file()
    assert not (tmp_path / "later_latent.safetensors").exists()


def test_latents_decode_later_to_the_same_video_with_the_same_sound(ask_talking, ask, tmp_path):
    first = generate(ask_talking(save_path=tmp_path / "talk.mp4", output_type="both"))
    [second] = decode_latents(ask(latent_path=[tmp_path / "talk_latent.safetensors"], save_path=tmp_path / "again.mp4"))
    assert torch.equal(first.video, second.video) and second.fps == 25
    assert read_sound(tmp_path / "again.mp4").samples.shape == read_sound(tmp_path / "talk.mp4").samples.shape
    [silent] = decode_latents(ask(latent_path=[tmp_path / "talk_latent.safetensors"], fps=8, trim_tail_frames=3))
    assert silent.fps == 8 and silent.video.shape[1] == 10 and silent.path is None


def test_frames_are_written_as_pictures(ask, tmp_path):
    result = generate(ask(video_length=5, output_type="images", save_path=tmp_path))
    files = sorted(result.path.iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(5)]
    assert np.array_equal(read_frames(result.path, fps=16), result.frames)


def test_metadata_can_be_left_out_but_not_the_word_generated(ask, tmp_path):
    import av
    from safetensors import safe_open

    generate(ask(video_length=5, output_type="both", no_metadata=True, prompt="secret", save_path=tmp_path / "a.mp4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a_latent.safetensors"]
    with safe_open(tmp_path / "a_latent.safetensors", "pt") as file:
        assert "secret" not in str(file.metadata())
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert "generated" in container.metadata["comment"].lower()
        assert "secret" not in str(dict(container.metadata))


def test_the_same_seed_gives_the_same_video_and_another_seed_another(ask):
    first, again, other = (generate(ask(video_length=5, seed=seed)).video for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_is_torchs_own_for_the_seed(ask):
    """ComfyUI and musubi-tuner's --cpu_noise draw torch.randn from a CPU generator with the seed."""
    seen = []
    generate(ask(video_length=5, seed=5, guidance_scale=1, sample_solver="euler", infer_steps=1),
             watch=lambda step, sample: seen.append((step, sample)))
    assert seen[0][0] == Step(0, 1, 1.0) and seen[0][1].shape == (1, 16, 2, 4, 6)
    from inference.pipeline import load_pipeline, noise_for

    request = ask(video_length=5, seed=5)
    noise = noise_for(load_pipeline(request).plan(request))
    assert torch.equal(noise[0], torch.randn(16, 2, 4, 6, generator=torch.Generator().manual_seed(5)))


def test_a_broken_weights_file_is_told_without_a_result(ask, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"1234567890")
    with pytest.raises(UserError, match="bad.safetensors"):
        generate(ask(dit=bad, video_length=5, save_path=tmp_path / "x.mp4"))
    assert not (tmp_path / "x.mp4").exists()
