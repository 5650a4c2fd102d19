"""Writes docs/coming-from-musubi.md from the scripts' own settings: ``python tools/coming_from_musubi.py``."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
import sys

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.config import FlagField, Foreign, Section, flags_of
import inference.foreign
from inference.request import GenerationRequest
from precompute.config import LATENT_FOREIGN, TEXT_FOREIGN, LatentSettings, TextSettings
from tools.musubi_flags import MUSUBI_FLAGS
from training.config import TrainConfig
import training.foreign

TARGET = Path(__file__).resolve().parent.parent / "docs" / "coming-from-musubi.md"


@dataclass(frozen=True)
class Script:
    """One of our scripts beside musubi-tuner's."""

    name: str
    theirs: str
    settings: type[Section]
    foreign: tuple[Foreign, ...]


SCRIPTS = (
    Script("cache_latents.py", "wan_cache_latents.py", LatentSettings, LATENT_FOREIGN),
    Script("cache_text_encoder_outputs.py", "wan_cache_text_encoder_outputs.py", TextSettings, TEXT_FOREIGN),
    Script("train_network.py", "wan_train_network.py", TrainConfig, training.foreign.FOREIGN),
    Script("generate_video.py", "wan_generate_video.py", GenerationRequest, inference.foreign.FOREIGN),
)


@dataclass(frozen=True)
class Answer:
    """What a user of a musubi-tuner flag gets."""

    flag: str
    need: str
    outcome: str
    """`same`, `renamed`, `coming`, `refused`, or `no effect` (accepted)."""
    note: str


def answers(script: Script) -> Iterator[Answer]:
    """The answer to every musubi-tuner flag of a script, the essential ones first."""
    own = {name: field for field in flags_of(script.settings) for name in (field.name, field.alias) if name}
    foreign = {entry.name: entry for entry in script.foreign}
    for need, flags in MUSUBI_FLAGS[script.name].items():
        for flag in flags:
            yield _answer(flag, need, own.get(flag), foreign.get(flag))


def _answer(flag: str, need: str, field: FlagField | None, foreign: Foreign | None) -> Answer:
    if flag == "config_file":
        return Answer(flag, need, "same", "unknown keys and wrong types are errors")
    if foreign is not None:
        outcome = "no effect" if foreign.status == "accepted" else foreign.status
        return Answer(flag, need, outcome, foreign.note)
    if field is None:
        raise LookupError(f"no settings and no foreign flag answer --{flag}")
    if flag != field.name:
        return Answer(flag, need, "renamed", f"`--{field.name}`; the old spelling is accepted")
    return Answer(flag, need, "same", field.differs)


def page() -> str:
    """The whole page."""
    parts = [_INTRODUCTION, _DIFFERENCES]
    for script in SCRIPTS:
        parts.append(f"## {script.name} ({script.theirs})\n\n{_table(answers(script))}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rows: Iterable[Answer]) -> str:
    lines = ["| flag | need | here | to know |", "|---|---|---|---|"]
    for row in rows:
        note = row.note.replace("|", "\\|")
        lines.append(f"| `--{row.flag}` | {row.need} | {row.outcome} | {note} |")
    return "\n".join(lines)


_INTRODUCTION = """
# Coming from musubi-tuner

The commands keep musubi-tuner's names without the prefix `wan_`, and its flags. The tables below answer every flag of
musubi-tuner 0.3.4 for Wan; they are written from the programs themselves (`python tools/coming_from_musubi.py`), and a
test gives each flag to its program.

- **same**: spelled and meant as there; where the behaviour differs, the last column says how, and the program says it
  in one line when the flag is used.
- **no effect**: accepted, and told in one line, because what it asks for is so anyway or is not needed.
- **coming**: an error that says what to do until then.
- **refused**: an error with the reason.

A dataset TOML of musubi-tuner works as it is; what is read in it, and what is added, is in
[datasets.md](datasets.md). LoRA files of musubi-tuner (kohya's keys) load, and ours load in musubi-tuner and ComfyUI.
"""

_DIFFERENCES = """
## What behaves differently under the same name

**Time.** The model is called with 1000·sigma, in training as in generation. musubi-tuner trains with 1000·sigma + 1 in
every rule but `sigma`.

**The rule `sigma`** (the default there and here) obeys `--discrete_flow_shift`; there it has no effect.
`--min_timestep` and `--max_timestep` count from 0, clean, to 1000, pure noise, under every rule; there `sigma` reads
them the other way round.

**`--base_weights`** are merged while the base is read, before float8 rounding. There they are added afterwards, and
little or nothing of them survives `--fp8_base` and `--fp8_scaled`.

**`--fp8_base`** stores the linear layers of the blocks as float8 with a scale for every 64 weights; norms, modulation,
embeddings and head keep their precision. There it casts the whole model without scales unless `--fp8_scaled` is given.

**Random draws** hang on the seed, the epoch and the sample's place in the epoch. Two processes with batch size 1 see
the noise that one process with batch size 2 sees, and a different number of processes changes nothing. There, all
processes share the same noise and the same noise level.

**Gradients** are the mean over all samples of an optimiser step, also where the last batch of a bucket is short.

**`--mixed_precision`** sets the precision in which the base is held; the file may be of another one. `fp16` is refused:
training needs bfloat16's range. Without the flag (and without `accelerate launch --mixed_precision`), bfloat16 is used
on a GPU and float32 on the CPU.

**`--network_weights`** is strict: a key that matches no module is an error, not a silent loss.

**Caches** are fresh or stale by content: the source's hash, the span, the size, the frame rate, the caption and the
encoder's weights. Nothing in a cache folder is ever deleted unasked. musubi-tuner's cache files are recognised, named
in one line and not used; ours lie beside them under other names.

**Precision of caches.** VAE latents are made in float32, as Wan makes them; there the default is bfloat16.

**Attention.** `--attn_mode auto` is the default; there one of the attention flags must be given.

**Checkpoints** are written to a temporary file first, so that an interrupted write leaves the older one whole. The last
epoch is written once, under the plain name, as there.

**Previews** (`--sample_prompts`) are what `generate_video.py --from_file` makes of the same lines: its steps, flow
shift (there 14.5), frame rate (there 24) and sizes, with the sound in the video. A line without `--d` has a fixed seed.
The end of a run is always shown.

**Unchanged on purpose:** `--network_alpha 1` (so the strength is 1 / rank), `--learning_rate 2e-6`,
`--network_dim` 4, `--max_train_steps 1600`: a command that worked there has the same strength here.
"""


def main() -> int:
    """Write the page."""
    TARGET.write_text(page(), encoding="utf-8", newline="\n")
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
