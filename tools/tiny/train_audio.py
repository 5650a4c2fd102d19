"""Train the small wav2vec2 to tell loudness and spectrum of speech; writes the folder in the published layout.

    python -m tools.tiny.train_audio OUT_DIR/wav2vec2-base-960h --speech speech.npz

The released model learned speech from 960 hours. This one only learns what moves a rendered mouth: from the hidden
states of each video frame, linear maps (not kept) tell by how much a mouth opens, how wide it spreads, and the sound's
mel bands around the frame's middle. It hears synthesised speech as `tools.tiny.sounds` changes it, so that it also
serves for recordings.
"""

import argparse
import json
import math
from multiprocessing import get_context
import os
from pathlib import Path
import time

import numpy as np
import torch
from torch import Tensor, nn

from common.atomic import write_text
from common.errors import ConfigError, run
from common.tensorfile import save_tensors
from tools.heads.laws import FPS, mouth_curves
from tools.tiny.audio import CONFIG, HIDDEN, LAYERS, PREPROCESSOR, audio_tensors
from tools.tiny.bank import load_speech
from tools.tiny.sounds import random_sounds
from tools.tiny.speech import RATE_HZ
from tools.tiny.training import Course, Masters, add_training_flags, start, write_record
from wan.encoders.audio import build_audio_encoder
from wan.encoders.audio_features import at_positions, conv_positions, normalise, padded_length

FRAMES = 81
"""Video frames of a training clip."""
BANDS = 16
HELD_OUT = 40
"""Last utterances, which training does not hear."""
PER_FRAME = RATE_HZ // FPS
WEIGHTS = (6.0, 2.0, *[0.5] * BANDS)
"""Of opening, spread, bands in the loss."""


def mel_bands(samples: np.ndarray, frames: int) -> np.ndarray:
    """``frames BANDS`` log energies of 40 ms around each frame's middle, on a mel axis from 80 to 7600 Hz."""
    pieces = np.pad(samples, (0, max(0, frames * PER_FRAME - len(samples))))[:frames * PER_FRAME]
    power = np.abs(np.fft.rfft(pieces.reshape(frames, PER_FRAME) * np.hanning(PER_FRAME), axis=1)) ** 2
    hertz = np.fft.rfftfreq(PER_FRAME, 1 / RATE_HZ)
    low, high = (2595 * math.log10(1 + f / 700) for f in (80, 7600))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    rise = (hertz[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - hertz[None]) / np.diff(edges)[1:, None]
    loudest = power.sum(1).max() + 1e-12
    return np.log(power / loudest @ np.clip(np.minimum(rise, fall), 0, None).T + 1e-7)


def targets(samples: np.ndarray) -> np.ndarray:
    """``FRAMES 2+BANDS``: opening (centred on 0), spread, mel bands relative to the clip's."""
    bands = mel_bands(samples, FRAMES)
    bands = (bands - bands.mean()) / (bands.std() + 1e-3)
    curves = mouth_curves(samples, RATE_HZ, FRAMES)
    return np.concatenate([2 * curves.opening[:, None] - 1, curves.spread[:, None], bands], axis=1).astype(np.float32)


def states_of(model: nn.Module, sound: Tensor, frames: int) -> Tensor:
    """All hidden states ``B frames K D`` of padded sounds ``B T``; `hidden_states` for more than one sound."""
    positions = conv_positions(frames, FPS, math.prod(model.config.conv_stride))
    features = at_positions(model.feature_extractor(sound).transpose(1, 2), positions)
    hidden = model.feature_projection(features)[0]
    hidden = model.encoder.layer_norm(hidden + model.encoder.pos_conv_embed(hidden))
    states = [hidden]
    for layer in model.encoder.layers:
        result = layer(hidden)
        hidden = result[0] if isinstance(result, tuple) else result
        states.append(hidden)
    return torch.stack(states, dim=2)


def padded(model: nn.Module, samples: np.ndarray, frames: int) -> Tensor:
    """Normalised sound with zeros after it, as the encoder makes it."""
    length = padded_length(frames, FPS, tuple(model.config.conv_kernel), tuple(model.config.conv_stride))
    sound = normalise(torch.from_numpy(np.ascontiguousarray(samples)))
    return nn.functional.pad(sound, (0, max(0, length - len(sound))))


def make_clips(model: nn.Module, utterances: list[np.ndarray], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sounds ``count T`` and targets ``count FRAMES 2+BANDS``."""
    sounds = random_sounds(utterances, count, FRAMES * PER_FRAME, seed)
    with get_context("fork").Pool(os.cpu_count()) as pool:
        wanted = np.stack(pool.map(targets, sounds, chunksize=64))
    return torch.stack([padded(model, sound, FRAMES) for sound in sounds]), torch.from_numpy(wanted)


def fresh_model() -> nn.Module:
    """The random tiny encoder, in the class that loads the released one."""
    model = build_audio_encoder(CONFIG).to_empty(device="cpu")
    stored = {key.removeprefix("wav2vec2."): tensor for key, tensor in audio_tensors(0).items()}
    renamed = {key.replace("conv.weight_g", "conv.parametrizations.weight.original0")
               .replace("conv.weight_v", "conv.parametrizations.weight.original1"): tensor
               for key, tensor in stored.items() if not key.startswith("lm_head")}
    model.load_state_dict(renamed)
    return model.train()


def published_names(model: nn.Module) -> dict[str, Tensor]:
    """Tensors under the names of the published file; the letters' head, which nobody uses, stays random."""
    tensors = {f"wav2vec2.{key}".replace("parametrizations.weight.original0", "weight_g")
               .replace("parametrizations.weight.original1", "weight_v"): tensor.detach().cpu().contiguous()
               for key, tensor in model.state_dict().items()}
    return {key: tensors.get(key, tensor) for key, tensor in audio_tensors(0).items()}


def train(model: nn.Module, sounds: Tensor, wanted: Tensor, course: Course, batch: int) -> None:
    """Regress the targets from every hidden state by itself; the model ends with the running mean of its weights."""
    device = sounds.device
    heads = nn.ModuleList(nn.Linear(HIDDEN, wanted.shape[-1]) for _ in range(LAYERS + 1)).to(device)
    masters = Masters(nn.ModuleList([model, heads]), decay=1e-3)
    weight = torch.tensor(WEIGHTS, device=device)
    random = torch.Generator(device).manual_seed(0)
    for _ in course:
        rows = torch.randint(len(sounds), (batch,), generator=random, device=device)
        states = states_of(model, sounds[rows], FRAMES)
        errors = [(head(states[:, :, k]) - wanted[rows]).square() * weight for k, head in enumerate(heads)]
        loss = torch.stack(errors).mean()
        loss.backward()
        masters.step(course.rate)
        if course.is_logged:
            course.note(loss=loss.item(), opening_error=errors[-1][..., 0].mean().item() / WEIGHTS[0])
    masters.use_mean()


def save(folder: Path, model: nn.Module) -> None:
    """The folder in the layout of facebook/wav2vec2-base-960h."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", published_names(model), {"format": "pt"})
    for name, content in (("config", CONFIG), ("preprocessor_config", PREPROCESSOR)):
        write_text(folder / f"{name}.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def main() -> int:
    """Train, save, and measure what was saved on utterances that training never heard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the model to; train_audio.json goes beside it")
    parser.add_argument("--speech", type=Path, required=True, help="file of tools.tiny.speech")
    parser.add_argument("--clips", type=int, default=16_000, help="sounds of 3.24 seconds (default 16000)")
    add_training_flags(parser, steps=9000, minutes=6, rate=2e-3, batch=64)
    settings = parser.parse_args()
    device = start(settings)
    utterances = load_speech(settings.speech)
    if len(utterances) < 3:
        raise ConfigError(f"{settings.speech}: {len(utterances)} utterances; 3 are the least, to learn from, to fit a "
                          "read-out on and to test it. Make more with tools.tiny.speech.")
    held = min(HELD_OUT, 2 * (len(utterances) // 3))
    started = time.monotonic()
    model = fresh_model()
    sounds, wanted = make_clips(model, utterances[:-held], settings.clips, settings.seed)
    ready = time.monotonic()
    course = Course(settings)
    train(model.to(device), sounds.to(device), wanted.to(device), course, settings.batch)
    save(settings.out, model)

    from tools.tiny.measure_audio import fit_and_test

    unheard = utterances[-held:]
    write_record(settings.out.parent / "train_audio.json", settings, course, {
        "seconds_of_making_sounds": round(ready - started, 1),
        **fit_and_test(settings.out, unheard[:held // 2], unheard[held // 2:])})
    return 0


if __name__ == "__main__":
    run(main)
