"""Train the small wav2vec2 to tell loudness and spectrum of speech; writes the folder in the published layout.

    python -m tools.tiny.train_audio OUT_DIR/wav2vec2-base-960h --speech speech.npz --minutes 1

The released model learned speech from 960 hours. This one only learns what moves a rendered mouth: from the hidden
states of each video frame, linear maps (not kept) tell the sound's level and its mel bands around the frame's middle.
"""

import argparse
import json
import math
from pathlib import Path
import time

import numpy as np
import torch
from torch import Tensor, nn

from common.tensorfile import save_tensors
from tools.talking_heads import FPS, mouth_opening
from tools.tiny.audio import CONFIG, HIDDEN, LAYERS, PREPROCESSOR, audio_tensors
from tools.tiny.bank import load_speech
from tools.tiny.speech import RATE_HZ
from wan.encoders.audio import build_audio_encoder
from wan.encoders.audio_features import at_positions, conv_positions, hidden_states, normalise, padded_length

FRAMES = 50
"""Video frames of a training clip: two seconds."""
BANDS = 16
HELD_OUT = 20
"""Last utterances, which training does not hear."""
PER_FRAME = RATE_HZ // FPS
PEAK_RATE = 2e-3


def mel_bands(samples: np.ndarray, frames: int) -> np.ndarray:
    """``frames BANDS`` log energies of 40 ms around each frame's middle, on a mel axis from 80 to 7600 Hz."""
    pieces = np.pad(samples, (0, max(0, frames * PER_FRAME - len(samples))))[:frames * PER_FRAME]
    power = np.abs(np.fft.rfft(pieces.reshape(frames, PER_FRAME) * np.hanning(PER_FRAME), axis=1)) ** 2
    hertz = np.fft.rfftfreq(PER_FRAME, 1 / RATE_HZ)
    low, high = (2595 * math.log10(1 + f / 700) for f in (80, 7600))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    rise = (hertz[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - hertz[None]) / np.diff(edges)[1:, None]
    return np.log(power @ np.clip(np.minimum(rise, fall), 0, None).T + 1e-4)


def targets(samples: np.ndarray, frames: int) -> np.ndarray:
    """``frames 1+BANDS``: opening of a mouth (centred on 0), mel bands relative to the clip's."""
    bands = mel_bands(samples, frames)
    bands = (bands - bands.mean()) / (bands.std() + 1e-3)
    opening = mouth_opening(samples, RATE_HZ, frames)
    return np.concatenate([2 * opening[:, None] - 1, bands], axis=1).astype(np.float32)


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


def make_clips(model: nn.Module, utterances: list[np.ndarray], count: int) -> tuple[Tensor, Tensor]:
    """Sounds ``count T`` and targets ``count FRAMES 1+BANDS`` of random two seconds, some partly silent."""
    rng = np.random.default_rng(2)
    sounds, wanted = [], []
    for _ in range(count):
        speech = utterances[rng.integers(len(utterances))]
        speech = np.pad(speech, RATE_HZ // 2)
        start = int(rng.integers(0, max(1, len(speech) - FRAMES * PER_FRAME)))
        part = speech[start:start + FRAMES * PER_FRAME]
        part = np.pad(part, (0, FRAMES * PER_FRAME - len(part)))
        part = part + rng.normal(0, 10 ** rng.uniform(-5, -2.5), len(part)).astype(np.float32)
        sounds.append(padded(model, part, FRAMES))
        wanted.append(torch.from_numpy(targets(part, FRAMES)))
    return torch.stack(sounds), torch.stack(wanted)


def heard(model: nn.Module, utterances: list[np.ndarray]) -> float:
    """Correlation of the true mouth opening with a ridge regression from all states, over utterances not fitted."""
    rows, wanted = [], []
    with torch.no_grad():
        for speech in utterances:
            frames = len(speech) // PER_FRAME
            sound = padded(model, speech, frames)
            positions = conv_positions(frames, FPS, math.prod(model.config.conv_stride))
            rows.append(hidden_states(model, sound, positions).flatten(1).double().numpy())
            wanted.append(mouth_opening(speech, RATE_HZ, frames))
    half = len(rows) // 2
    x, y = np.concatenate(rows[:half]), np.concatenate(wanted[:half])
    centre, spread = x.mean(0), x.std(0) + 1e-6
    x = (x - centre) / spread
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    guess = (np.concatenate(rows[half:]) - centre) / spread @ weights
    return float(np.corrcoef(guess, np.concatenate(wanted[half:]))[0, 1])


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


def train(model: nn.Module, sounds: Tensor, wanted: Tensor, *, seconds: float, batch: int) -> list[dict[str, float]]:
    """Regress the targets from every hidden state by itself."""
    device = sounds.device
    heads = nn.ModuleList(nn.Linear(HIDDEN, wanted.shape[-1]) for _ in range(LAYERS + 1)).to(device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    weight = torch.tensor([4.0] + [1.0] * BANDS, device=device)
    started, step, log = time.monotonic(), 0, []
    while (passed := time.monotonic() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * passed / seconds))
        rows = torch.randint(len(sounds), (batch,), device=device)
        states = states_of(model, sounds[rows], FRAMES)
        errors = [(head(states[:, :, k]) - wanted[rows]).square() * weight for k, head in enumerate(heads)]
        loss = torch.stack(errors).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            log.append({"step": step, "seconds": round(passed, 1), "loss": round(loss.item(), 5)})
            if step % 400 == 0:
                print(log[-1], flush=True)
    return log


def main() -> None:
    """Train, measure on utterances that training never heard, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", type=Path, required=True, help="file of tools.tiny.speech")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--clips", type=int, default=4000)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    utterances = load_speech(arguments.speech)
    model = fresh_model()
    before = heard(model.eval(), utterances[-HELD_OUT:])
    sounds, wanted = make_clips(model, utterances[:-HELD_OUT], arguments.clips)
    log = train(model.to(device).train(), sounds.to(device), wanted.to(device), seconds=60 * arguments.minutes,
                batch=arguments.batch)
    model = model.cpu().eval()
    summary = {"opening_r_before": round(before, 3), "opening_r": round(heard(model, utterances[-HELD_OUT:]), 3),
               "steps": log[-1]["step"] if log else 0, "seconds": 60 * arguments.minutes,
               "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    print(summary, flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_tensors(arguments.out / "model.safetensors", published_names(model), {"format": "pt"})
    for name, content in (("config", CONFIG), ("preprocessor_config", PREPROCESSOR)):
        (arguments.out / f"{name}.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    (arguments.out.parent / "train_audio.json").write_text(json.dumps({"summary": summary, "log": log}, indent=1))


if __name__ == "__main__":
    main()
