"""The page of all previews in a folder: a row for each prompt, a column for each step, written from their records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.atomic import write_text
from common.logs import get_logger

log = get_logger(__name__)

PAGE = "index.html"
LOSSES = {"loss": "loss", "average_loss": "average", "held_out_loss": "held out"}
"""Key in a record → word on the page."""


@dataclass(frozen=True)
class Shown:
    """One preview, as its record tells."""

    stem: str
    training: Mapping[str, Any]
    settings: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def row(self) -> tuple[int, str, str, str]:
        """What makes it the same preview at another step."""
        media = (str(self.settings.get(name, "")) for name in ("image_path", "audio"))
        return (int(self.training["number"]), str(self.settings["prompt"]), *media)  # type: ignore[return-value]


def write_page(folder: Path) -> Path:
    """Write ``index.html`` of the previews in `folder`; its path. It names files beside it and needs nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    write_text(path, page(read_previews(folder), {one.name for one in folder.iterdir()}))
    return path


def read_previews(folder: Path) -> list[Shown]:
    """Every preview whose record is in `folder`, by step and number; what is no record of one is passed over."""
    found = []
    for path in sorted(folder.glob("*_step*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            one = Shown(path.stem, record["training"], record["settings"], record["result"])
            found.append((int(one.training["step"]), one.row, one))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: no record of a preview (%s); the page leaves it out", path, error)
    return [one for _, _, one in sorted(found, key=lambda entry: entry[:2])]


def page(previews: Sequence[Shown], files: set[str]) -> str:
    """The whole page. `files` are the names that exist beside it."""
    names = list(dict.fromkeys(str(one.training["name"]) for one in previews))
    tables = [_table(name, [one for one in previews if one.training["name"] == name], files) for name in names]
    title = escape(", ".join(names)) or "none yet"
    return _FRAME.format(title=title, style=_STYLE, tables="\n".join(tables) or "<p>No preview yet.</p>")


def _table(name: str, previews: Sequence[Shown], files: set[str]) -> str:
    steps = sorted({int(one.training["step"]) for one in previews})
    cells = {(one.row, int(one.training["step"])): one for one in previews}
    heads = "".join(_head(step, [one for one in previews if one.training["step"] == step]) for step in steps)
    rows = []
    for row in sorted({one.row for one in previews}):
        latest = [one for one in previews if one.row == row][-1]
        columns = "".join(_cell(cells.get((row, step)), files) for step in steps)
        rows.append(f"<tr>{_prompt(latest, files)}{columns}</tr>")
    return (f"<h2>{escape(name)}</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th>prompt</th>{heads}</tr></thead>\n"
            "<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>")


def _head(step: int, previews: Sequence[Shown]) -> str:
    told: dict[str, Any] = {}
    for one in previews:  # a preview that was made after a stop does not know the losses
        told |= {key: value for key, value in one.training.items() if value is not None}
    losses = [f"{word} {told[key]:.4f}" for key, word in LOSSES.items() if isinstance(told.get(key), int | float)]
    notes = [f"epoch {told['epoch']}", *losses] if told.get("epoch") else losses
    return f"<th>step {step}<small>{escape(', '.join(notes))}</small></th>"


def _prompt(one: Shown, files: set[str]) -> str:
    settings, result = one.settings, one.result
    facts = (f"{result['width']}x{result['height']}, {result['frames']} frames at {result['fps']:g} fps, "
             f"{settings.get('infer_steps')} steps, seed {settings.get('seed')}")
    picture, sound = f"{one.stem}_ref.jpg", f"{one.stem}.wav"
    parts = [f"<b>{one.training['number']:02d}</b> {escape(one.row[1])}", f"<small>{escape(facts)}</small>",
             f"<small>{escape(str(one.training.get('from', '')))}</small>"]
    if picture in files:
        parts.append(f'<img src="{quote(picture)}" alt="reference picture" loading="lazy">')
    if sound in files:
        parts.append(f'<audio controls preload="none" src="{quote(sound)}"></audio>')
    return f"<th scope=\"row\">{''.join(parts)}</th>"


def _cell(one: Shown | None, files: set[str]) -> str:
    if one is None or f"{one.stem}.mp4" not in files:
        return "<td>&ndash;</td>"
    stem = quote(one.stem)
    return (f'<td><video controls loop preload="none" poster="{stem}_fmid.jpg" src="{stem}.mp4" '
            f'width="{int(one.result["width"])}" height="{int(one.result["height"])}"></video>'
            f'<small><a href="{stem}.json">record</a></small></td>')


_STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif }
body { margin: 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse }
th, td { padding: .4rem; vertical-align: top; text-align: left; font-weight: normal }
th[scope=row], thead th:first-child { position: sticky; left: 0; background: Canvas; min-width: 14rem; max-width: 18rem;
  overflow-wrap: anywhere }
small { display: block; opacity: .7 }
video, img { display: block; width: 20rem; max-width: 20rem; height: auto; image-rendering: auto; background: #8883 }
img, audio { width: 14rem; margin-top: .3rem }
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Previews: {title}</title>
<style>{style}</style>
</head>
<body>
<h1>Previews</h1>
{tables}
</body>
</html>
"""
