"""Train the small text-to-video DiT on rendered talking heads; writes wan2.1_t2v_tiny.safetensors, official names.

    python -m tools.tiny.train_dit OUT_DIR --weights WEIGHTS --speech speech.npz --minutes 9

WEIGHTS holds the VAE and the umT5 with its tokenizer. The DiT learns flow matching with captions and with 0 to 4 clean
latents at the beginning of a clip, as OmniAvatar's base is used: it can continue a picture, and its mouths move. It
hears nothing: sound is what a condition adds later.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
import json
import math
from pathlib import Path
import time

import torch
from torch import Tensor

from common.flow import MODEL_TIME_SCALE, mix, shift_sigma, velocity
from common.tensorfile import save_tensors
from tools.tiny.bank import Bank, make_bank
from tools.tiny.dit import TEXT_DIM
from tools.tiny.write import TEXT_FILE, VAE_FILE
import wan
from wan.conditions.given_frames import GivenFrames, apply_given, loss_mask
from wan.modules.dit import WanDiT
from wan.modules.vae import Vae
from wan.variants import DEFAULT_NEGATIVE_PROMPT, OMNIAVATAR_NEGATIVE_PROMPT, Variant
from wan.weights.source import open_weights

FILE = "wan2.1_t2v_tiny.safetensors"
VARIANT = Variant(dim=256, ffn_dim=384, layers=4, heads=2, in_channels=16, out_channels=16, text_dim=TEXT_DIM)
LENGTHS = (3, 5, 9, 13, 17)
"""Latent frames of the batches' clips."""
GIVEN = (0.2, 0.5, 0.1, 0.1, 0.1)
"""Probability of 0, 1 … 4 given latent frames."""
SHIFT = 3.0
TEXT_DROPPED = 0.1
"""Share of the clips that are shown the empty or a negative prompt instead of their caption."""
NULL_PROMPTS = ("", DEFAULT_NEGATIVE_PROMPT, OMNIAVATAR_NEGATIVE_PROMPT)
EMA = 0.999


@dataclass(frozen=True)
class Example:
    """One batch: clean latents, what is given of them, noise level, noise, text."""

    latents: Tensor
    given: GivenFrames
    sigma: Tensor
    noise: Tensor
    text: Tensor


@dataclass(frozen=True)
class Encoded:
    """A bank behind the VAE and the text encoder, on the training device."""

    latents: Tensor
    """``clips 16 F H W``, bfloat16."""
    text: Tensor
    """``clips+3 L D``; the last rows are the empty and the negative prompts."""


def encode_bank(bank: Bank, weights: Path, device: str) -> Encoded:
    """Latents of all clips and hidden states of all captions, zeros after each caption as Wan pads them."""
    from tools.tiny.train_vae import encode_means

    vae: Vae = wan.load_vae(weights / VAE_FILE, device=device)
    centre, deviation = vae._statistics(torch.zeros((), device=device))
    latents = []
    with torch.no_grad():
        for pictures in torch.from_numpy(bank.pictures).split(16):
            video = pictures.to(device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
            latents.append(((encode_means(vae, video) - centre) / deviation).to(torch.bfloat16))
    encoder = wan.load_text_encoder(weights / TEXT_FILE, device=device)
    known = {caption: encoder.encode([caption])[0] for caption in set(bank.captions)}
    states = [*(known[caption] for caption in bank.captions), *encoder.encode(list(NULL_PROMPTS))]
    text = torch.zeros(len(states), max(map(len, states)), TEXT_DIM, device=device, dtype=torch.bfloat16)
    for row, state in zip(text, states, strict=True):
        row[:len(state)] = state
    return Encoded(torch.cat(latents), text)


def draw_example(data: Encoded, frames: int, size: int, random: torch.Generator) -> Example:
    """A batch of `size` clips cut to `frames` latents, noise level and given frames drawn a clip."""
    device = data.latents.device
    clips = torch.randint(len(data.latents), (size,), generator=random, device=device)
    latents = data.latents[clips, :, :frames].float()
    count = torch.multinomial(torch.tensor(GIVEN, device=device), size, replacement=True, generator=random)
    count = count.clamp(max=frames - 1)
    mask = (torch.arange(frames, device=device) < count[:, None]).float()[:, None, :, None, None]
    is_dropped = torch.rand(size, generator=random, device=device) < TEXT_DROPPED
    null = len(data.text) - torch.randint(1, len(NULL_PROMPTS) + 1, (size,), generator=random, device=device)
    rows = torch.where(is_dropped, null, clips)
    sigma = shift_sigma(torch.rand(size, generator=random, device=device), SHIFT)
    noise = torch.randn(latents.shape, generator=random, device=device)
    return Example(latents, GivenFrames(latents, mask.expand(-1, -1, -1, *latents.shape[3:])), sigma, noise,
                   data.text[rows])


def examples(data: Encoded, batch: int) -> Iterator[Example]:
    """Endless batches of about `batch` x 17 latent frames."""
    random = torch.Generator(data.latents.device).manual_seed(0)
    lengths = torch.Generator().manual_seed(0)
    while True:
        frames = LENGTHS[int(torch.randint(len(LENGTHS), (), generator=lengths))]
        yield draw_example(data, frames, round(batch * LENGTHS[-1] / frames), random)


def flow_loss(dit: WanDiT, one: Example) -> Tensor:
    """Mean squared error of the velocity over what is not given."""
    noisy = mix(one.latents, one.noise, one.sigma[:, None, None, None, None])
    noisy = apply_given(noisy, one.given, one.sigma, one.noise)
    predicted = dit(noisy, one.sigma * MODEL_TIME_SCALE, one.text)
    free = loss_mask(one.given)
    assert free is not None
    errors = (predicted - velocity(one.latents, one.noise)).square() * free
    return (errors.mean((1, 2, 3, 4)) / free.mean((1, 2, 3, 4))).mean()


class Masters:
    """float32 copies of a bfloat16 model's parameters, which the optimiser steps, and their running mean."""

    def __init__(self, dit: WanDiT, rate: float) -> None:
        self.half = list(dit.parameters())
        self.full = [p.detach().float().requires_grad_() for p in self.half]
        self.mean = [p.detach().clone() for p in self.full]
        self.optimizer = torch.optim.AdamW(self.full, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, rate: float, count: int) -> None:
        """One step of the optimiser at learning rate `rate` with the gradients of the model."""
        for full, half in zip(self.full, self.half, strict=True):
            full.grad = None if half.grad is None else half.grad.float()
            half.grad = None
        torch.nn.utils.clip_grad_norm_(self.full, 1.0)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, self.full, 1 - min(EMA, (count + 1) / (count + 10)))
            torch._foreach_copy_(self.half, self.full)

    def use_mean(self) -> None:
        """Put the running mean into the model."""
        with torch.no_grad():
            torch._foreach_copy_(self.half, self.mean)


def fresh_dit(device: str) -> WanDiT:
    """A DiT in bfloat16 whose first velocity is zero."""
    dit = WanDiT(VARIANT)
    torch.nn.init.zeros_(dit.head.head.weight)
    torch.nn.init.zeros_(dit.head.head.bias)
    return dit.to(device, torch.bfloat16).train()


def load_into_dit(dit: WanDiT, path: Path) -> None:
    """The weights of an earlier run, in the model's own order and dtype."""
    with open_weights(path) as source:
        dit.load_state_dict({key: source.tensor(key) for key in dit.state_dict()})


def train(dit: WanDiT, data: Encoded, *, seconds: float, rate: float, batch: int) -> list[dict[str, float]]:
    """Train for `seconds`, the rate falling to zero with a cosine; the model ends with the running mean."""
    masters = Masters(dit, rate)
    started, log = time.monotonic(), []
    total = torch.zeros((), device=data.latents.device)
    for step, example in enumerate(examples(data, batch), start=1):
        passed = time.monotonic() - started
        if passed >= seconds:
            break
        loss = flow_loss(dit, example)
        loss.backward()
        masters.step(rate * min(1, step / 300) * (0.5 + 0.5 * math.cos(math.pi * passed / seconds)), step)
        total += loss.detach()
        if step % 100 == 0:
            log.append({"step": step, "seconds": round(passed, 1), "loss": round(total.item() / 100, 5)})
            total.zero_()
            if step % 500 == 0:
                print(log[-1], flush=True)
    masters.use_mean()
    return log


def held_out_loss(dit: WanDiT, data: Encoded) -> float:
    """Loss on clips that training never saw, at fixed draws."""
    random = torch.Generator(data.latents.device).manual_seed(7)
    with torch.no_grad():
        return sum(flow_loss(dit, draw_example(data, 17, 32, random)).item() for _ in range(8)) / 8


def main() -> None:
    """Render, encode, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the VAE, umT5 and its tokenizer")
    parser.add_argument("--speech", type=Path, required=True, help="file of tools.tiny.speech")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--start", type=Path, help="a file of this script to continue from")
    parser.add_argument("--batch", type=int, default=64, help="clips of 17 latents a batch; more if shorter")
    parser.add_argument("--clips", type=int, default=3000)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    frames = 4 * LENGTHS[-1] - 3
    seen, unseen = (encode_bank(make_bank(arguments.speech, clips=n, frames=frames, size=128, seed=s),
                                arguments.weights, device) for n, s in ((arguments.clips, 2), (64, 1)))
    spread = seen.latents.float().std((0, 2, 3, 4))
    print(f"rendered and encoded in {time.monotonic() - started:.0f} s; deviations {spread.tolist()}", flush=True)
    dit = fresh_dit(device)
    if arguments.start:
        load_into_dit(dit, arguments.start)
    log = train(dit, seen, seconds=60 * arguments.minutes, rate=arguments.rate, batch=arguments.batch)
    summary = {"unseen_loss": round(held_out_loss(dit, unseen), 5), "steps": log[-1]["step"] if log else 0,
               "seconds": round(time.monotonic() - started, 1), "batch": arguments.batch, "clips": arguments.clips,
               "parameters": sum(p.numel() for p in dit.parameters()),
               "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    print(summary, flush=True)
    save_tensors(arguments.out / FILE, {key: t.cpu().contiguous() for key, t in dit.state_dict().items()},
                 {"format": "pt"})
    (arguments.out / "train_dit.json").write_text(json.dumps({"summary": summary, "log": log}, indent=1))


if __name__ == "__main__":
    main()
