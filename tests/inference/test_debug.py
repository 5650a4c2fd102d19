"""Looking inside: figures of every frame, lines about tensors, and a run without the LoRA."""

import json

import numpy as np
import pytest
import torch

from inference import generate
from inference.debug import FrameStats


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_frame_is_measured(tmp_path):
    flat, stripes = np.full((16, 16, 3), 100, np.uint8), np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = 200
    stats = FrameStats(tmp_path / "s.jsonl", reference=np.full((16, 16, 3), 90, np.uint8))
    stats.measure(np.stack([flat, flat]))
    stats.measure(np.stack([stripes]))
    stats.write()
    first, second, third = lines(tmp_path / "s.jsonl")
    assert first == {"frame": 0, "min": 100, "max": 100, "mean": 100, "std": 0, "change": None, "from_reference": 10,
                     "sharpness": 0}
    assert second["change"] == 0 and second["frame"] == 1
    assert (third["min"], third["max"], third["mean"], third["change"]) == (0, 200, 100, 100)
    assert third["std"] == 100 and third["sharpness"] > 1000


def test_figures_and_lines_of_a_run(ask_talking, tmp_path, caplog):
    with caplog.at_level("INFO"):
        result = generate(ask_talking(frame_stats=tmp_path / "s.jsonl", debug=True))
    found = lines(tmp_path / "s.jsonl")
    assert [one["frame"] for one in found] == list(range(13))
    assert found[4]["mean"] == pytest.approx(float(result.frames[4].mean()), abs=0.01)
    assert found[0]["from_reference"] is not None and found[0]["change"] is None
    text = caplog.text
    for words in ("audio.states: 1x13x3x", "reference_latents.latents: 1x16x1x4x6 float32", "step 2 of 2, sigma",
                  "given mask (1 = given) by latent frame: 1 0 0 0", "noise: 1x16x4x4x6"):
        assert words in text, words


def test_without_the_lora_the_sound_is_still_heard(ask_talking, tmp_path):
    import soundfile

    silent = tmp_path / "silence.wav"
    soundfile.write(silent, np.zeros(8000, np.float32), 16000)
    whole, bare = generate(ask_talking()), generate(ask_talking(no_lora=True))
    quiet = generate(ask_talking(no_lora=True, audio=silent))
    weak = generate(ask_talking(lora_multiplier=[0.0]))
    assert (whole.latents - bare.latents).abs().max() > 1e-3
    assert (quiet.latents - bare.latents).abs().max() > 1e-3
    assert torch.equal(weak.latents, bare.latents)
