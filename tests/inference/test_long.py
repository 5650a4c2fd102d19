"""Long videos on tiny weights: every frame once, flat memory, the file while it grows, stopping and going on."""

import gc
from itertools import pairwise
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.errors import ConfigError, UserError
from common.media.sound import read_sound
from common.media.video import probe_video, read_frames
from inference import generate, load_pipeline
from inference.chunks import make_chunks
from inference.denoise import Step
from inference.unfinished import folder_of

RATE = 16_000


@pytest.fixture(scope="session")
def long_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.46 s of sound, 37 frames at 25 fps, that changes all along; from 0.52 to 0.6 s it is silent."""
    time = np.arange(round(1.46 * RATE)) / RATE
    sound = 0.3 * np.sin(2 * np.pi * (150 + 200 * time) * time) * (1.2 + np.sin(2 * np.pi * 3 * time)) / 2
    sound[round(0.52 * RATE):round(0.6 * RATE)] = 0
    path = tmp_path_factory.mktemp("long") / "speech.wav"
    soundfile.write(path, sound, RATE)
    return path


@pytest.fixture
def ask_long(ask_talking, long_speech):
    """Makes a request of several chunks: 9 frames each, 5 of them taken over, so 4 new ones a chunk."""
    def make(**settings):
        values = {"audio": long_speech, "chunk_frames": 9, "overlap_frame": 5, "infer_steps": 1,
                  "sample_solver": "euler", "guidance_scale": 1.0}
        return ask_talking(**{**values, **settings})
    return make


class Interrupted(Exception):
    """What a test throws into a run."""


def stop_in(chunk: int, error: type[BaseException] = Interrupted):
    """A watch that throws in the given chunk (from 0) of one-step chunks."""
    seen = []

    def watch(step: Step, sample: torch.Tensor) -> None:
        seen.append(step)
        if len(seen) == chunk + 1:
            raise error
    return watch


def test_a_long_sound_gives_exactly_its_frames_and_the_whole_sound(ask_long, long_speech, tmp_path):
    result = generate(ask_long(save_path=tmp_path / "talk.mp4"))
    assert result.path == tmp_path / "talk.mp4" and result.video is None and result.latents is None
    info = probe_video(tmp_path / "talk.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (48, 32, 37, 25)
    written, given = read_sound(tmp_path / "talk.mp4"), read_sound(long_speech)
    assert written.samples.shape == given.samples.shape
    assert np.corrcoef(written.samples[0], given.samples[0])[0, 1] > 0.99
    record = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert record["result"]["chunks"] == 8 and record["result"]["frames"] == 37
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.json", "talk.mp4"]


def test_the_file_holds_what_the_same_request_gives_in_memory(ask_long, tmp_path):
    held = generate(ask_long())
    generate(ask_long(save_path=tmp_path / "talk.mp4"))
    assert held.video is not None and held.video.shape == (3, 37, 32, 48)
    written = read_frames(tmp_path / "talk.mp4", fps=25).astype(int)
    assert np.abs(written - held.frames).mean() < 8, "H.264 at crf 18 of noise"


@pytest.mark.parametrize("stitch", ["pixel", "latent"])
def test_every_chunk_begins_with_the_end_of_the_one_before(ask_long, stitch):
    """The known latents of each chunk: encoded again from the last frames, or the last latents themselves."""
    pipeline = load_pipeline(ask_long(stitch=stitch))
    prepared = pipeline.prepare(pipeline.plan(ask_long(stitch=stitch)))
    from inference.chunks import make_chunks

    chunks, shown = [], []

    def sample(chunk, segment):
        shown.append(chunk.batch)
        return pipeline.sample(chunk)

    for chunk in make_chunks(prepared, pipeline.models.get("vae"), sample):
        chunks.append(chunk)
    assert prepared.batch.first_is_still.all() and not any(batch.first_is_still.any() for batch in shown[1:])
    for index in range(1, len(chunks)):
        mask, known = shown[index].given_mask[0, 0, :, 0, 0], shown[index].given_latents[0, :, :2]
        assert mask.tolist() == [1, 1, 0] and torch.equal(chunks[index].latents[:, :2], known)
        if stitch == "latent":
            assert torch.equal(known, chunks[index - 1].latents[:, -2:])
        else:
            before = torch.cat([chunk.frames for chunk in chunks[:index]], dim=1)[:, -5:]
            with torch.no_grad():
                encoded = pipeline.models.get("vae").encode(before[None])[0]
            torch.testing.assert_close(known, encoded)
    if stitch == "latent":
        with torch.no_grad():
            stream = torch.cat([chunks[0].latents, *[one.latents[:, 2:] for one in chunks[1:]]], dim=1)
            whole = pipeline.models.get("vae").decode(stream[None])[0]
        assert torch.equal(torch.cat([chunk.frames for chunk in chunks], dim=1), whole[:, :37])


def test_every_frame_hears_its_own_row_and_two_on_each_side(ask_long):
    """The rows of the chunks are those of the whole sound at the frames that they show."""
    pipeline = load_pipeline(ask_long())
    plan = pipeline.plan(ask_long())
    prepared = pipeline.prepare(plan)
    rows = prepared.sounds[0]["states"]
    whole = pipeline.models.get("audio_encoder").encode(
        torch.from_numpy(plan.scene.sound.mono_16k), sample_rate=RATE, fps=25, frames=plan.sound_rows)
    assert torch.equal(rows, whole) and len(rows) == plan.segments[-1].end == 37
    for before, one in pairwise(plan.segments):
        heard = prepared.following(one, torch.zeros(16, 2, 4, 6)).batch.features["audio"]
        assert torch.equal(heard["states"][0], rows[one.start:one.end])
        assert torch.equal(heard["before"][0], rows[one.start - 2:one.start])
        assert torch.equal(heard["after"][0, :1], rows[[min(one.end, 36)]]) and one.start == before.start + 4
    first = prepared.batch.features["audio"]
    assert torch.equal(first["before"][0], rows[[0, 0]]) and torch.equal(first["after"][0], rows[9:11])


def test_omniavatars_lead_moves_the_sound_by_a_frame_and_its_silence(ask_long, long_speech, tmp_path):
    result = generate(ask_long(omniavatar_lead=True, chunk_frames=29, save_path=tmp_path / "talk.mp4"))
    assert result.settings.audio_lead == 0.3 and result.sound_lead_s == pytest.approx(0.34)
    assert probe_video(tmp_path / "talk.mp4").frames == 45  # ceil((1.46 + 0.3) * 25) + 1
    written, given = read_sound(tmp_path / "talk.mp4"), read_sound(long_speech)
    lead = round(0.34 * RATE)
    assert written.samples.shape[1] == given.samples.shape[1] + lead
    assert np.corrcoef(written.samples[0, lead:], given.samples[0])[0, 1] > 0.99
    plan = load_pipeline(ask_long(omniavatar_lead=True, chunk_frames=29)).plan(
        ask_long(omniavatar_lead=True, chunk_frames=29))
    assert [one.frames for one in plan.segments] == [29, 29] and plan.sound_rows == 52


def test_memory_is_that_of_one_chunk(ask_long, tmp_path):
    """Bytes of all living tensors while a chunk is sampled: in chunk 8 no more than in chunk 2, and level between."""
    held = []

    def watch(step: Step, sample: torch.Tensor) -> None:
        gc.collect()
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes()
                    for one in gc.get_objects() if issubclass(type(one), torch.Tensor)}
        held.append(sum(storages.values()))

    generate(ask_long(save_path=tmp_path / "talk.mp4"), watch=watch)
    # Chunk 2 may still hold what the first one's features left behind; the last chunk is shorter.
    assert len(held) == 8 and max(held[2:]) <= held[1], held
    assert len(set(held[2:-1])) == 1, held


@pytest.mark.parametrize(("stitch", "error"), [("pixel", Interrupted), ("latent", KeyboardInterrupt)])
def test_an_interrupted_run_keeps_its_chunks_and_goes_on_to_the_same_video(ask_long, tmp_path, stitch, error, caplog):
    target = tmp_path / "talk.mp4"
    with pytest.raises(error):
        generate(ask_long(stitch=stitch, save_path=target, seed=3), watch=stop_in(6, error))
    parts = folder_of(target)
    assert not target.exists() and len(list(parts.glob("chunk-*.safetensors"))) == 6
    assert probe_video(parts / "so-far.mp4").frames == 9 + 5 * 4 and "--resume" in caplog.text

    calls = []
    generate(ask_long(stitch=stitch, save_path=target, resume=True, seed=None),
             watch=lambda step, sample: calls.append(step))
    assert len(calls) == 2 and not parts.exists() and probe_video(target).frames == 37
    generate(ask_long(stitch=stitch, save_path=tmp_path / "straight.mp4"))
    resumed, straight = (read_frames(path, fps=25).astype(int) for path in (target, tmp_path / "straight.mp4"))
    assert np.abs(resumed - straight).mean() < 0.5, "levels of 255; roundings hang on the load of the processor"


def test_going_on_with_other_settings_is_refused_by_name(ask_long, tmp_path):
    target = tmp_path / "talk.mp4"
    with pytest.raises(Interrupted):
        generate(ask_long(save_path=target), watch=stop_in(2))
    with pytest.raises(ConfigError, match="not finished. Go on with them by --resume, or delete"):
        generate(ask_long(save_path=target))
    with pytest.raises(ConfigError, match='prompt was "a person speaks", is "another"'):
        generate(ask_long(save_path=target, resume=True, prompt="another"))
    with pytest.raises(ConfigError, match="infer_steps was 1, is 2"):
        generate(ask_long(save_path=target, resume=True, infer_steps=2))
    assert len(list(folder_of(target).glob("chunk-*.safetensors"))) == 2


def test_a_run_that_fails_in_its_first_chunk_leaves_nothing(ask_long, tmp_path):
    with pytest.raises(Interrupted):
        generate(ask_long(save_path=tmp_path / "talk.mp4"), watch=stop_in(0))
    assert list(tmp_path.iterdir()) == []


def test_chunks_of_unknown_origin_are_not_used(ask_long, tmp_path):
    target = tmp_path / "talk.mp4"
    with pytest.raises(Interrupted):
        generate(ask_long(save_path=target), watch=stop_in(2))
    (folder_of(target) / "state.json").unlink()
    calls = []
    generate(ask_long(save_path=target, resume=True), watch=lambda step, sample: calls.append(step))
    assert len(calls) == 8


def test_a_damaged_chunk_is_made_again(ask_long, tmp_path):
    target = tmp_path / "talk.mp4"
    with pytest.raises(Interrupted):
        generate(ask_long(save_path=target), watch=stop_in(3))
    (folder_of(target) / "chunk-0002.safetensors").write_bytes(b"torn")
    calls = []
    generate(ask_long(save_path=target, resume=True), watch=lambda step, sample: calls.append(step))
    assert len(calls) == 6 and probe_video(target).frames == 37


def test_seams_fall_into_pauses_and_colours_keep_to_the_picture(ask_long, face, tmp_path):
    plan = load_pipeline(ask_long()).plan(ask_long(chunk_frames=17, seams_in_pauses=True))
    assert plan.segments[0].end in (13, 17) and plan.segments[-1].new.stop == 37
    silent = [13, 14, 15]  # 0.52 to 0.6 s
    assert any(one.new.start in silent for one in plan.segments[1:])
    free, matched = generate(ask_long()).frames, generate(ask_long(color_match=1.0)).frames
    from common.media.image import read_image
    from inference.inputs import exact_frames

    wanted = (exact_frames(read_image(face)[0], (48, 32), "cover")[0] * 0.5 + 0.5).mean(axis=(0, 1)) * 255
    off = [np.abs(frames[-8:].mean(axis=(0, 1, 2)) - wanted).max() for frames in (free, matched)]
    assert off[1] < off[0] / 2


@pytest.mark.parametrize("stitch", ["pixel", "latent"])
def test_the_sink_is_the_picture_in_the_first_given_frame_of_every_chunk(ask_long, stitch):
    known = []

    def sample(prepared, segment):
        known.append(prepared.batch.given_latents[0, :, :segment.known_latents])
        return torch.randn(16, segment.latents, 4, 6, generator=torch.Generator().manual_seed(segment.index))

    for sink in ("none", "reference"):
        request = ask_long(stitch=stitch, sink=sink)
        pipeline = load_pipeline(request)
        prepared = pipeline.prepare(pipeline.plan(request))
        picture = prepared.batch.features["reference_latents"]["latents"][0]
        known.clear()
        list(make_chunks(prepared, pipeline.models.get("vae"), sample))
        is_picture = [torch.equal(one[:, :1], picture) for one in known[1:]]
        assert len(known) == 8 and is_picture == [sink == "reference"] * 7
        if sink == "none":
            others = [one[:, 1:].clone() for one in known]
    assert all(torch.equal(one[:, 1:], other) for one, other in zip(known, others, strict=True))


def test_eased_seams_make_smaller_steps_and_change_nothing_else(ask_long):
    plain, eased = (generate(ask_long(ease_seams=length)).frames.astype(int) for length in (0, 3))
    assert (plain[:9] == eased[:9]).all(), "the first chunk"
    step = [np.abs(np.diff(frames[[8, 9]], axis=0)).mean() for frames in (plain, eased)]
    assert step[1] < step[0]


def test_a_trimmed_tail_and_an_asked_length_count_over_all_chunks(ask_long, tmp_path):
    result = generate(ask_long(video_length=25, trim_tail_frames=6, save_path=tmp_path / "talk.mp4"))
    assert probe_video(tmp_path / "talk.mp4").frames == 19
    assert read_sound(result.path).duration_s == pytest.approx(19 / 25, abs=2e-3)


@pytest.mark.parametrize(("settings", "words"), [
    ({"overlap_frame": 9}, "takes over 9"),
    ({"output_type": "both", "save_path": "x.mp4"}, "needs 8 chunks"),
])
def test_chunks_that_cannot_be_are_refused_before_models_load(ask_long, tmp_path, settings, words):
    if "save_path" in settings:
        settings = {**settings, "save_path": tmp_path / settings["save_path"]}
    with pytest.raises(UserError, match=words):
        load_pipeline(ask_long(**settings)).plan(ask_long(**settings))


@pytest.mark.parametrize(("settings", "words"), [
    ({"overlap_frame": 14}, "Use 13 or 17"), ({"chunk_frames": 10}, "--chunk_frames 10.*Use 9 or 13"),
    ({"resume": True}, "--save_path must name the video"),
])
def test_settings_off_the_rule_are_refused_at_the_door(ask, settings, words):
    with pytest.raises(ValueError, match=words):
        ask(**settings)


def test_an_image_to_video_model_is_shown_the_frames_that_a_chunk_takes_over(ask, face, long_speech, tiny_weights,
                                                                           tmp_path):
    """Mask and latents of its own channels hold the overlap, and the sampler keeps it at the step's noise."""
    from common.tensorfile import save_tensors
    from inference.chunks import make_chunks
    from inference.forward import ClipVelocity
    from networks.condition_weights import condition_tensors
    from networks.metadata import Origin
    from tests.inference.conftest import audio_width
    import wan
    from wan.conditions.registry import build_condition

    variant = wan.load_dit(tiny_weights / "wan2.1_i2v_tiny.safetensors").variant
    settings = {"audio_states": "3", "audio_width": str(audio_width(tiny_weights))}
    conditions = {"frame_xattn": build_condition("frame_xattn", settings, variant)}
    save_tensors(tmp_path / "multi.safetensors", condition_tensors(conditions),
                 Origin(conditions={"frame_xattn": conditions["frame_xattn"].settings_text()}, fps=25.0).text())
    request = ask("i2v", image_path=face, lora_weight=[tmp_path / "multi.safetensors"], audio=long_speech,
                  wav2vec=tiny_weights / "wav2vec2-base-960h", chunk_frames=9, overlap_frame=5, infer_steps=1,
                  guidance_scale=1.0, video_length=13)
    pipeline = load_pipeline(request)
    prepared = pipeline.prepare(pipeline.plan(request))
    seen = []

    def sample(chunk, segment):
        seen.append(chunk)
        return pipeline.sample(chunk)

    chunks = list(make_chunks(prepared, pipeline.models.get("vae"), sample))
    assert [one.frames.shape[1] for one in chunks] == [9, 4]
    first, later = (one.batch.features["image_latents"]["latents"][0] for one in seen)
    assert first[:4, :, 0, 0].sum(0).tolist() == [4, 0, 0] and later[:4, :, 0, 0].sum(0).tolist() == [4, 4, 0]
    with torch.no_grad():
        known = pipeline.models.get("vae").encode(chunks[0].frames[None, :, -5:])[0]
    torch.testing.assert_close(later[4:, :2], known)
    plan = prepared.plan
    noise = torch.randn(1, *plan.shape_of(plan.segments[1]))
    velocity = ClipVelocity(pipeline.models.get("dit"), pipeline.models.get("conditions"), seen[1], plan.guide(), noise)
    half = velocity.write_given(noise, 0.5)
    torch.testing.assert_close(half[0, :, :2], 0.5 * known + 0.5 * noise[0, :, :2])
    assert torch.equal(half[0, :, 2:], noise[0, :, 2:])
