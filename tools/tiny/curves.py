"""Draw the loss curves of the small set's trainings from the records that they left.

    python -m tools.tiny.curves [RECORDS] [--out docs/images]

reads train_vae.json, train_dit.json and train_audio.json of the folder RECORDS and writes tiny-vae.png, tiny-dit.png
and tiny-wav2vec2.png.
"""

import argparse
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError, run

RECORDS = Path("examples/tiny-weights")
OUT = Path("docs/images")


@dataclass(frozen=True)
class Plot:
    """One picture: the record it is drawn from and the column drawn below the loss, if any, with its label."""

    record: str
    title: str
    second: str | None = None
    label: str = ""
    is_log: bool = False


PLOTS = {
    "tiny-vae.png": Plot("train_vae.json", "VAE", "psnr_db", "PSNR of the batch [dB]"),
    "tiny-dit.png": Plot("train_dit.json", "DiT"),
    "tiny-wav2vec2.png": Plot("train_audio.json", "wav2vec2", "opening_error", "error of the opening", True),
}


def read_record(path: Path, columns: list[str]) -> dict[str, Any]:
    """A training's record; ConfigError when it is missing, no JSON, or has no log with these columns."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a record of a training ({error}). Expected the train_*.json that "
                          "tools.tiny.train_vae, train_dit and train_audio write.") from None
    log = record.get("log") if isinstance(record, dict) else None
    if not isinstance(log, list) or not log or not all(isinstance(row, dict) for row in log):
        raise ConfigError(f"{path}: no rows in 'log'. Expected the record of a training that logged at least once.")
    missing = [name for name in ["step", *columns] if any(name not in row for row in log)]
    if missing:
        raise ConfigError(f"{path}: rows of 'log' lack {', '.join(missing)}; found {', '.join(log[0])}. Is it another "
                          "training's record?")
    return record


def draw(plot: Plot, record: dict[str, Any], path: Path) -> None:
    """Write one picture: the loss over the steps on a logarithmic axis, and the second column below it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from common.atomic import atomic_path

    log = record["log"]
    steps = [row["step"] for row in log]
    columns = ["loss"] if plot.second is None else ["loss", plot.second]
    figure = Figure(figsize=(8, 2 + 1.8 * len(columns)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, columns, strict=True):
        panel.plot(steps, [row[name] for row in log], color="tab:blue", linewidth=1)
        panel.set_ylabel("loss" if name == "loss" else plot.label)
        panel.grid(alpha=0.3)
        if name == "loss" or plot.is_log:
            panel.set_yscale("log")
        for at in changes(log):
            panel.axvline(at, color="tab:gray", linestyle=":", linewidth=1)
    panels[0].set_title(f"{plot.title}: {record['steps']} steps in {record['seconds']:.1f} s on {record['device']}",
                        fontsize="medium")
    panels[-1].set_xlabel("step")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)


def changes(log: list[dict[str, float]]) -> list[float]:
    """Steps of the first rows that saw pictures of another size than the row before."""
    return [row["step"] for before, row in zip(log, log[1:], strict=False) if before.get("side") != row.get("side")]


def main() -> int:
    """Read all records first, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="?", default=RECORDS,
                        help=f"folder with the train_*.json (default {RECORDS.as_posix()})")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the pictures (default {OUT.as_posix()})")
    settings = parser.parse_args()
    records = {name: read_record(settings.records / plot.record, ["loss", *([plot.second] if plot.second else [])])
               for name, plot in PLOTS.items()}
    for name, record in records.items():
        draw(PLOTS[name], record, settings.out / name)
        print(settings.out / name)
    return 0


if __name__ == "__main__":
    run(main)
