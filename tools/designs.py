"""Compare the audio designs under one protocol: same clips, steps, batches, seeds and unseen items for each of them.

    python tools/designs.py                                all designs; a table at the end
    python tools/designs.py --designs gated_lite --long    one of them, and a minute of speech on top
    python tools/designs.py --two_speakers                 and two heads in one picture, each with its own sound

Trains each design from zero on examples/demo/clips beside a LoRA (the numbers stand in tools/proof/recipe.py), lets two
unseen faces say five unseen utterances, and measures mouths against sounds. On a GPU where there is one.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.errors import run  # noqa: E402
from tools.proof.recipe import DESIGNS, LONG  # noqa: E402


def replaced(pairs: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """`pairs` of name=value, those of `others` in the place of equal names, new ones behind."""
    named = {pair.partition("=")[0]: pair for pair in (*pairs, *others)}
    return tuple(named.values())


def main() -> int:
    """Train, generate, measure each design; 1 when one misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS),
                        help="which (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-run" / "designs", help="folder for everything that is "
                        "made (default: demo-run/designs)")
    parser.add_argument("--steps", type=int, help="training steps, in place of the protocol's")
    parser.add_argument("--long", action="store_true", help="also go on training for long videos, and say a minute of "
                        "speech, chunk by chunk")
    parser.add_argument("--speech", type=Path, help="the minute of speech (default: synthesised, needs espeak-ng)")
    parser.add_argument("--two_speakers", action="store_true", help="also two speakers in one picture")
    parser.add_argument("--network_args", nargs="+", default=[], help="more of them, or others in "
                        "the place of the protocol's")
    parser.add_argument("--name", default="", help="put what is made into OUT/DESIGN-NAME, beside other trials")
    parser.add_argument("--cached", action="store_true", help="the caches in --out are whole: do not look again")
    parser.add_argument("--keep", action="store_true", help="use the trained files that are in --out already")
    arguments = parser.parse_args()

    from tools.proof.commands import Commands, shown
    from tools.proof.designs import Outcome, Report, count_parameters, measure_items, step_seconds, table
    from tools.proof.inputs import make_items, unseen_faces, unseen_sounds

    started = time.monotonic()
    outcomes: list[Outcome] = []
    reports: list[Report] = []
    for design in arguments.designs:
        recipe = DESIGNS[design]
        recipe = replace(recipe, steps=arguments.steps or recipe.steps,
                         network_args=replaced(recipe.network_args, arguments.network_args))
        commands = Commands(arguments.out.resolve(), recipe, folder=f"{design}-{arguments.name}".strip("-"))
        if not (arguments.keep and commands.lora("after").exists()):
            commands.begin()
            if not arguments.cached:
                commands.cache()
            commands.train()
        unseen = commands.media / "unseen"
        items = make_items(unseen_faces(unseen)[:recipe.faces], unseen_sounds(unseen)[:recipe.sounds], recipe.seed)
        summary = measure_items(items, commands.generate("after", items))
        outcomes.append(Outcome(commands.folder, count_parameters(commands.lora("after")),
                                step_seconds(commands.result / "lora" / "metrics.jsonl"), summary))
        if arguments.long:
            from tools.proof.long import long_speech

            later = Commands(arguments.out.resolve() / "long",
                             replace(LONG, conditions=recipe.conditions), folder=commands.folder)
            if not (arguments.keep and later.lora("after").exists()):
                later.begin()
                later.cache()
                later.train(commands.lora("after"))
            reports.append(long_speech(later, items[0], sound=arguments.speech))
        if arguments.two_speakers:
            from tools.proof.two_speakers import two_speakers

            reports.append(two_speakers(commands))
    text = "\n".join([table(outcomes), *(one.text for one in reports)])
    report = arguments.out / f"{'-'.join([*arguments.designs, arguments.name]).strip('-')}.md"
    report.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{shown(report.resolve())}, {time.monotonic() - started:.0f} s")
    return int(not (all(one.is_good for one in outcomes) and all(one.is_good for one in reports)))


if __name__ == "__main__":
    run(main)
