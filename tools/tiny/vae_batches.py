"""Batches for training the small VAE: windows of rendered clips, some of them spoiled, with weights on the mouths."""

from dataclasses import dataclass

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

from tools.tiny.bank import Bank

SPOILED = 0.25
"""Share of the clips that show no talking head."""
AT_MOUTH = 0.4
"""Share of the windows that are laid around the mouth."""
GAIN, SHIFT = 0.10, 0.06
"""Deviations of a colour's factor and of what is added to it, for pictures in -1…1."""


@dataclass(frozen=True)
class Batch:
    """`video` in -1…1, `mouth` 1 inside a mouth's box; the first SPOILED share has no mouths."""

    video: Float[Tensor, "B 3 F S R"]
    mouth: Float[Tensor, "B 1 F S R"]


class Batches:
    """Random windows of a bank's clips on the training device."""

    def __init__(self, bank: Bank, device: str, seed: int) -> None:
        self.pictures = torch.from_numpy(bank.pictures).to(device)
        self.boxes = torch.from_numpy(bank.boxes.astype("int32")).to(device)
        self.random = torch.Generator(device).manual_seed(seed)
        self.dice = torch.Generator().manual_seed(seed)  # of single numbers, which a GPU would have to be waited for
        self.device = device

    def draw(self, size: int, frames: int, side: int) -> Batch:
        """`size` clips of `frames` frames, windows of `side` x `side` pixels, each mirrored half the time."""
        spoiled = int(size * SPOILED)
        parts = [self._spoiled(spoiled, frames, side)] if spoiled else []
        parts.append(self._plain(size - spoiled, frames, side))
        video, mouth = (torch.cat([getattr(part, name) for part in parts]) for name in ("video", "mouth"))
        flip = self._uniform(size, 1, 1, 1, 1) < 0.5
        video, mouth = (torch.where(flip, x.flip(-1), x) for x in (video, mouth))
        gain = 1 + GAIN * self._normal(size, 3, 1, 1, 1)
        return Batch((video * gain + SHIFT * self._normal(size, 3, 1, 1, 1)).clamp(-1, 1), mouth)

    def _plain(self, size: int, frames: int, side: int) -> Batch:
        clips, starts = self._clips(size, frames)
        middle = self.boxes[clips, starts, 0].float().reshape(size, 2, 2).mean(1)  # x, y
        corners = []
        for axis, length in ((1, self.pictures.shape[2]), (0, self.pictures.shape[3])):  # rows, columns
            anywhere = self._uniform(size) * (length - side + 1)
            near = middle[:, axis] - side * (0.25 + 0.5 * self._uniform(size))
            corners.append(torch.stack((anywhere, near)))
        near_mouth = (self._uniform(size) < AT_MOUTH).long()
        top, left = (corner.gather(0, near_mouth[None])[0].long().clamp(0, length - side)
                     for corner, length in zip(corners, self.pictures.shape[2:4], strict=True))
        times = starts[:, None] + torch.arange(frames, device=self.device)
        rows, columns = (corner[:, None] + torch.arange(side, device=self.device) for corner in (top, left))
        cut = self.pictures[clips[:, None, None, None], times[:, :, None, None], rows[:, None, :, None],
                            columns[:, None, None, :]]
        return Batch(as_video(cut), self._mouths(self.boxes[clips[:, None], times], rows, columns))

    def _mouths(self, boxes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """``B 1 F S R``: 1 inside any of `boxes` ``B F heads 4``, `rows` ``B S`` and `columns` ``B R`` given."""
        left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(-1))  # B F heads 1
        rows, columns = rows[:, None, None], columns[:, None, None]
        inside_y, inside_x = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        return (inside_y[..., :, None] & inside_x[..., None, :]).any(2)[:, None].float()

    def _spoiled(self, size: int, frames: int, side: int) -> Batch:
        """Clips of other colours, upside down, mixed, four in one, under clouds that change."""
        clips, starts = self._clips(size, frames)
        times = starts[:, None] + torch.arange(frames, device=self.device)
        video = as_video(self.pictures[clips[:, None], times])
        other = video.roll(1, 0)[:, torch.randperm(3, generator=self.dice).tolist()].flip(-2)
        is_small = self._uniform(size, 1, 1, 1, 1) < 0.5
        video = torch.where(is_small, four_in_one(video, other), video)
        mixed = torch.lerp(video, other.roll(1, 0), self._uniform(size, 1, 1, 1, 1) * (self._uniform(1) < 0.7))
        cells = 2 ** int(torch.randint(2, 6, (), generator=self.dice))
        clouds = F.interpolate(self._normal(size, 6, cells, cells), video.shape[-2:], mode="bilinear")
        passing = torch.linspace(0, 1, frames, device=self.device)[None, None, :, None, None]
        clouds = torch.lerp(clouds[:, :3, None], clouds[:, 3:, None], passing)
        mixed = mixed + 0.7 * self._uniform(size, 1, 1, 1, 1) * clouds
        top, left = (int(torch.randint(length - side + 1, (), generator=self.dice))
                     for length in video.shape[-2:])
        cut = mixed[..., top:top + side, left:left + side]
        return Batch(cut, torch.zeros_like(cut[:, :1]))

    def _clips(self, size: int, frames: int) -> tuple[Tensor, Tensor]:
        clips = torch.randint(len(self.pictures), (size,), generator=self.random, device=self.device)
        starts = torch.randint(self.pictures.shape[1] - frames + 1, (size,), generator=self.random, device=self.device)
        return clips, starts

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.random, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, device=self.device)


def as_video(pictures: Tensor) -> Tensor:
    """``B 3 F H W`` in -1…1 of bytes ``B F H W 3``."""
    return pictures.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def four_in_one(video: Tensor, other: Tensor) -> Tensor:
    """Four small clips side by side, the size of one: finer detail than any clip has by itself."""
    one, two = (F.avg_pool3d(clip, (1, 2, 2)) for clip in (video, other))
    return torch.cat((torch.cat((one, two), -1), torch.cat((two.flip(-1), one.roll(1, 0)), -1)), -2)
