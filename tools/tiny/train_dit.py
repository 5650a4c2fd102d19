"""Train the small text-to-video DiT on rendered talking heads; writes wan2.1_t2v_tiny.safetensors, official names.

    python -m tools.tiny.train_dit OUT_DIR --weights WEIGHTS --speech speech.npz

WEIGHTS holds the VAE and the umT5 with its tokenizer. The DiT learns flow matching with captions and with 0 to 4 clean
latents at the beginning of a clip, as OmniAvatar's base is used: it can continue a picture, and its mouths move. It
hears nothing: sound is what a condition adds later. One batch in eight shows two heads in a wide picture.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
import time

import torch
from torch import Tensor

from common.errors import run
from common.flow import MODEL_TIME_SCALE, mix, shift_sigma, velocity
from common.tensorfile import save_tensors
from tools.tiny.bank import Bank
from tools.tiny.banks import add_bank_flags, bank_of
from tools.tiny.dit import TEXT_DIM
from tools.tiny.fast_convs import encode_means
from tools.tiny.training import Course, Masters, add_training_flags, start, write_record
from tools.tiny.vae_batches import as_video
from tools.tiny.write import TEXT_FILE, VAE_FILE
import wan
from wan.conditions.given_frames import GivenFrames, apply_given, loss_mask
from wan.modules.dit import WanDiT
from wan.variants import DEFAULT_NEGATIVE_PROMPT, OMNIAVATAR_NEGATIVE_PROMPT, Variant

FILE = "wan2.1_t2v_tiny.safetensors"
VARIANT = Variant(dim=256, ffn_dim=320, layers=4, heads=2, in_channels=16, out_channels=16, text_dim=TEXT_DIM)
LENGTHS = (3, 7, 13, 21, 21)
"""Latent frames of the batches' clips, one as often as the other, as far as the bank's are that long."""
GIVEN = (0.2, 0.5, 0.1, 0.1, 0.1)
"""Probability of 0, 1 … 4 given latent frames."""
TWO_HEADS = 0.12
"""Share of the batches that show two heads."""
SHIFT = 3.0
TEXT_DROPPED = 0.1
"""Share of the clips that are shown the empty or a negative prompt instead of their caption."""
NULL_PROMPTS = ("", DEFAULT_NEGATIVE_PROMPT, OMNIAVATAR_NEGATIVE_PROMPT)
PART = 1500
"""Clips that are rendered and encoded at a time."""
UNSEEN, UNSEEN_DRAWS = 64, 8


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
    """Clips behind the VAE and the text encoder, on the training device."""

    latents: Tensor
    """``clips 16 F H W``, bfloat16."""
    text: Tensor
    """``clips+3 L D``; the last rows are the empty and the negative prompts."""


@torch.no_grad()
def encode_bank(bank: Bank, weights: Path, device: str) -> Tensor:
    """Normalised latents of all clips, computed in bfloat16 on a GPU."""
    vae = wan.load_vae(weights / VAE_FILE, device=device)
    centre, deviation = vae._statistics(torch.zeros((), device=device))
    with torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext():
        means = [encode_means(vae, as_video(part.to(device))) for part in torch.from_numpy(bank.pictures).split(16)]
    return torch.cat([((mean.float() - centre) / deviation).to(torch.bfloat16) for mean in means])


def encode_captions(captions: Sequence[str], weights: Path, device: str) -> Tensor:
    """Hidden states of captions and null prompts, zeros after each as Wan pads them."""
    encoder = wan.load_text_encoder(weights / TEXT_FILE, device=device)
    known = {caption: encoder.encode([caption])[0] for caption in set(captions)}
    states = [*(known[caption] for caption in captions), *encoder.encode(list(NULL_PROMPTS))]
    text = torch.zeros(len(states), max(map(len, states)), TEXT_DIM, device=device, dtype=torch.bfloat16)
    for row, state in zip(text, states, strict=True):
        row[:len(state)] = state
    return text


def encoded(settings: argparse.Namespace, device: str, *, clips: int, seed: int, heads: int = 1) -> Encoded | None:
    """Clips of the scenes from `seed` on, rendered and encoded in parts; None when they are only rendered."""
    latents, captions = [], []
    for part, first in enumerate(range(0, clips, PART)):
        bank = bank_of(settings, clips=min(PART, clips - first), seed=seed + part, heads=heads)
        captions += bank.captions
        if not settings.render_only:
            latents.append(encode_bank(bank, settings.weights, device))
    if settings.render_only:
        return None
    return Encoded(torch.cat(latents), encode_captions(captions, settings.weights, device))


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


def examples(single: Encoded, double: Encoded, batch: int, seed: int) -> Iterator[Example]:
    """Endless batches of about as many latents as `batch` of the longest one-head clips have."""
    random = torch.Generator(single.latents.device).manual_seed(seed)
    dice = torch.Generator().manual_seed(seed)
    longest = single.latents.shape[2]
    lengths = [frames for frames in LENGTHS if frames <= longest]
    while True:
        frames = lengths[int(torch.randint(len(lengths), (), generator=dice))]
        is_double = bool(torch.rand((), generator=dice) < TWO_HEADS)
        size = batch * longest / frames / (2 if is_double else 1)
        yield draw_example(double if is_double else single, frames, max(1, round(size)), random)


def flow_loss(dit: WanDiT, one: Example) -> Tensor:
    """Mean squared error of the velocity over what is not given."""
    noisy = mix(one.latents, one.noise, one.sigma[:, None, None, None, None])
    noisy = apply_given(noisy, one.given, one.sigma, one.noise)
    predicted = dit(noisy, one.sigma * MODEL_TIME_SCALE, one.text)
    free = loss_mask(one.given)
    assert free is not None
    errors = (predicted - velocity(one.latents, one.noise)).square() * free
    return (errors.mean((1, 2, 3, 4)) / free.mean((1, 2, 3, 4))).mean()


def fresh_dit(device: str) -> WanDiT:
    """A DiT in bfloat16 whose first velocity is zero."""
    dit = WanDiT(VARIANT)
    torch.nn.init.zeros_(dit.head.head.weight)
    torch.nn.init.zeros_(dit.head.head.bias)
    return dit.to(device, torch.bfloat16).train()


def train(dit: WanDiT, batches: Iterator[Example], course: Course) -> None:
    """Train along `course`; the model ends with the running mean of its weights."""
    if dit.device.type == "cuda":
        for block in dit.blocks:
            block.compile(dynamic=True)
    masters = Masters(dit, betas=(0.9, 0.98))
    total, count = torch.zeros((), device=dit.device), 0
    for _ in course:
        loss = flow_loss(dit, next(batches))
        loss.backward()
        masters.step(course.rate)
        total, count = total + loss.detach(), count + 1
        if course.is_logged:
            course.note(loss=total.item() / count)
            total, count = torch.zeros_like(total), 0
    masters.use_mean()


@torch.no_grad()
def held_out_loss(dit: WanDiT, data: Encoded) -> float:
    """Loss on scenes that training never saw, whole clips, at fixed draws."""
    random = torch.Generator(data.latents.device).manual_seed(7)
    frames, size = data.latents.shape[2], min(32, len(data.latents))
    return sum(flow_loss(dit, draw_example(data, frames, size, random)).item()
               for _ in range(UNSEEN_DRAWS)) / UNSEEN_DRAWS


def main() -> int:
    """Render, encode, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=f"folder to write {FILE} and train_dit.json to")
    parser.add_argument("--weights", type=Path, required=True, help="folder with the VAE, umT5 and its tokenizer")
    add_bank_flags(parser, clips=4000)
    parser.add_argument("--double_clips", type=int, default=500, help="clips of two heads (default 500)")
    add_training_flags(parser, steps=23750, minutes=15, rate=1e-3, batch=32)
    settings = parser.parse_args()
    device = start(settings)
    started = time.monotonic()
    unseen, unseen_double, single, double = (
        encoded(settings, device, clips=min(clips, settings.clips), seed=seed, heads=heads)
        for clips, seed, heads in ((UNSEEN, 1, 1), (UNSEEN, 1, 2), (settings.clips, 2, 1),
                                   (settings.double_clips, 2, 2)))
    if unseen is None or unseen_double is None or single is None or double is None:
        return 0
    ready = time.monotonic()
    print(f"rendered and encoded in {ready - started:.0f} s", flush=True)
    dit = fresh_dit(device)
    course = Course(settings)
    train(dit, examples(single, double, settings.batch, settings.seed), course)
    trained = time.monotonic()
    save_tensors(settings.out / FILE, dit.state_dict(), {"format": "pt"})
    saved = wan.load_dit(settings.out / FILE, device=device)
    summary = {"seconds_of_encoding": round(ready - started, 1), "seconds_of_training": round(trained - ready, 1),
               "parameters": sum(p.numel() for p in saved.parameters()),
               "latent_deviation": round(single.latents.float().std().item(), 3),
               "unseen_loss": round(held_out_loss(saved, unseen), 5),
               "unseen_two_head_loss": round(held_out_loss(saved, unseen_double), 5)}
    write_record(settings.out / "train_dit.json", settings, course, summary)
    return 0


if __name__ == "__main__":
    run(main)
