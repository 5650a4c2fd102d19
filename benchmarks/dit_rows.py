"""Which steps and forwards of the DiT are measured: rows in groups that share a process and a model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

SIZES: dict[str, dict[str, Any]] = {
    "t2v-14B": {"dim": 5120, "ffn_dim": 13824, "layers": 40, "heads": 40, "text_dim": 4096, "in_channels": 16},
    "i2v-14B": {"dim": 5120, "ffn_dim": 13824, "layers": 40, "heads": 40, "text_dim": 4096, "in_channels": 36,
                "has_image_branch": True, "image_dim": 1280},
    "t2v-1.3B": {"dim": 1536, "ffn_dim": 8960, "layers": 30, "heads": 12, "text_dim": 4096, "in_channels": 16},
    "tiny": {"dim": 64, "ffn_dim": 128, "layers": 4, "heads": 2, "text_dim": 16, "in_channels": 16},
    "tiny-i2v": {"dim": 64, "ffn_dim": 128, "layers": 4, "heads": 2, "text_dim": 16, "in_channels": 36,
                 "has_image_branch": True, "image_dim": 32},
}
"""Of `Variant`. i2v: 20 channels more, CLIP tokens with keys and values of their own."""
GB24, GB48, GB80 = 24e9, 48e9, 80e9
GIB = 2**30
Kind = Literal["step", "forward"]
Fp8 = Literal["", "stores", "computes"]


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    """What --only looks in; the same name is the same row in the table."""
    task: str
    grid: tuple[int, int, int]
    """Latent frames, latent height, latent width."""
    activations: str = "full"
    """A policy, a mix of them, or `auto` (`--memory`)."""
    compiled: bool = True
    mode: str | None = None
    """Of torch.compile; `reduce-overhead` records CUDA graphs."""
    fp8: Fp8 = ""
    attention: str = "sdpa"
    """Back end by name; on Hopper `sdpa` is cuDNN's kernel."""
    kind: Kind = "step"
    """`forward` has no LoRA on: it is merged in a generation."""
    swapped: int = 0
    offloads: bool = False
    limit: float | None = None
    """Bytes that the process may take of the GPU; `auto` sees them."""
    steps: int = 5
    seconds: int = 60
    """What the row takes on an H200, about, compiling included."""
    is_plain: bool = False
    """Whether ratios are to this row: eager, bfloat16, torch's attention, all recomputed."""
    goal: str = ""
    """Line of the table of goals (`benchmarks.speed_table`) that the row may fill."""

    @property
    def size(self) -> str:
        """Height x width x frames of the video."""
        frames, height, width = self.grid
        return f"{8 * height}x{8 * width}x{4 * frames - 3}"


CLIP81, CLIP33, SQUARE25 = (21, 60, 104), (9, 60, 104), (7, 60, 60)
I2V = Row("", "i2v-14B", CLIP81, fp8="computes")
T2V = Row("", "t2v-14B", CLIP81, fp8="computes")
SMALL = Row("", "t2v-1.3B", CLIP81)
PLAIN = Row("", "t2v-14B", CLIP81, compiled=False, is_plain=True, steps=2)


def named(base: Row, name: str, **changes: Any) -> Row:
    """A row like another one; the name begins with the model and the size."""
    row = replace(base, **changes)
    kind = " forward" if row.kind == "forward" else ""
    return replace(row, name=f"{row.task}{kind} {row.size}: {name}")


GROUPS: tuple[tuple[Row, ...], ...] = (
    (
        named(I2V, "FA4, fp8 products, mix", activations="matmuls:22,attention", attention="fa4", goal="14B exact",
              seconds=125),
        named(I2V, "FA4, fp8 products, fits 44 GiB", activations="attention:12,full", attention="fa4",
              goal="14B 44 GiB", seconds=120),
        named(I2V, "FA4, fp8 products, attention in host memory", activations="attention", attention="fa4",
              offloads=True, goal="14B 44 GiB", seconds=120),
        named(I2V, "cuDNN, fp8 products, mix", activations="matmuls:22,attention", goal="14B exact", seconds=130),
        named(I2V, "cuDNN, fp8 products, fits 44 GiB", activations="attention:12,full", goal="14B 44 GiB",
              seconds=130),
    ), (
        named(T2V, "FA4, fp8 products, nothing recomputed", grid=SQUARE25, activations="none", attention="fa4",
              goal="14B square", steps=20, seconds=65),
        named(T2V, "FA4, fp8 products, nothing recomputed, CUDA graphs", grid=SQUARE25, activations="none",
              attention="fa4", mode="reduce-overhead", goal="14B square", seconds=65),
        named(T2V, "FA4, fp8 products", kind="forward", activations="none", attention="fa4", goal="forward",
              seconds=45),
        named(T2V, "8-bit attention, fp8 products", kind="forward", activations="none", attention="cudnn_fp8",
              goal="forward 8-bit", seconds=45),
        named(T2V, "cuDNN, fp8 products, all recomputed", activations="full", steps=2, seconds=85),
        named(T2V, "24 GB, --memory auto, fp8 products", activations="auto", limit=GB24, steps=3, goal="24 GB",
              seconds=95),
        named(T2V, "24 GB, --memory auto, fp8 products", grid=CLIP33, activations="auto", limit=GB24, steps=3,
              seconds=60),
        named(T2V, "24 GB, --memory auto, fp8 products", grid=SQUARE25, activations="auto", limit=GB24, seconds=45),
        named(T2V, "80 GB, --memory auto, fp8 products", activations="auto", limit=GB80, steps=3, seconds=100),
        named(T2V, "48 GB, --memory auto, fp8 products", activations="auto", limit=GB48, steps=3, seconds=100),
        named(T2V, "141 GB, --memory auto, fp8 products", activations="auto", steps=3, seconds=110),
        named(T2V, "cuDNN, fp8 products, nothing recomputed", grid=SQUARE25, activations="none", goal="14B square",
              seconds=55),
        named(T2V, "matmuls, fp8 products", grid=SQUARE25, activations="matmuls", steps=3, seconds=40),
        named(T2V, "attention, fp8 products", grid=SQUARE25, activations="attention", steps=3, seconds=40),
        named(T2V, "all recomputed, fp8 products", grid=SQUARE25, activations="full", steps=3, seconds=40),
        named(T2V, "20 blocks swapped, eager, fp8 products", grid=CLIP33, compiled=False, swapped=20, steps=3,
              seconds=25),
        named(T2V, "24 blocks swapped, offload, eager, fp8 products", grid=CLIP33, compiled=False, swapped=24,
              offloads=True, steps=3, seconds=25),
        named(T2V, "cuDNN, fp8 products", kind="forward", activations="none", goal="forward", seconds=45),
    ), (
        named(SMALL, "FA4, fp8 products, nothing recomputed", activations="none", attention="fa4", fp8="computes",
              goal="1.3B", seconds=60),
    ), (
        named(SMALL, "FA4, nothing recomputed", activations="none", attention="fa4", goal="1.3B", seconds=60),
        named(SMALL, "cuDNN, nothing recomputed", activations="none", goal="1.3B", seconds=60),
        named(SMALL, "plain path", compiled=False, is_plain=True, steps=3, seconds=20),
    ), (
        named(PLAIN, "plain path", seconds=60),
        named(PLAIN, "plain path", grid=SQUARE25, steps=3, seconds=10),
        named(PLAIN, "plain path", kind="forward", activations="none", steps=3, seconds=20),
        named(PLAIN, "compiled, attention kept", compiled=True, is_plain=False, activations="attention", seconds=110),
    ), (
        named(PLAIN, "plain path", task="i2v-14B", seconds=60),
    ),
)
"""The most important first. No attention of eight bits has a backward pass here, so only forwards have it.
A group shares model, size of the base's numbers and process."""
ROWS = tuple(row for group in GROUPS for row in group)
"""Numbers of `--only` count in these."""


def chosen(rows: Sequence[Row], only: Sequence[str] | None) -> list[int]:
    """Numbers of the rows that --only asks for: by number, or by a part of the name; all without."""
    if only is None:
        return list(range(len(rows)))
    return [number for number, row in enumerate(rows)
            if any(text == str(number) or (not text.isdigit() and text.lower() in row.name.lower()) for text in only)]


def tiny(row: Row) -> Row:
    """The row at a size that a CPU does in a second; float8 only stores, because a CPU's products of it are slow."""
    policy = "matmuls:2,attention" if ":" in row.activations else row.activations
    task = "tiny-i2v" if row.task.startswith("i2v") else "tiny"
    return replace(row, task=task, grid=(3, 8, 12), activations=policy, attention="sdpa", steps=1,
                   swapped=min(row.swapped, 3), fp8="" if row.fp8 == "" else "stores")
