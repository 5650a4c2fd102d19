"""Train a small Wan model to hear on the shipped clips, and measure whether sound moves the mouth.

    python tools/demo.py                       minutes on two CPU cores: one unseen face says one unseen utterance
    python tools/demo.py --full                as long as it needs, on a GPU where there is one: two unseen faces and
                                               five unseen utterances, with goals; exit code 1 when one is missed
    python tools/demo.py --full --audio a.wav  and the same with recordings of your own (the first 3.24 s of speech)

Runs the commands that a user runs on real weights and prints each before it starts: cache, train, generate before and
after. The weights (examples/tiny-weights) are a few megabytes and know rendered heads, but no sound; LoRA and audio
condition are trained here from zero on examples/demo/clips. Sync is Pearson's r of mouth opening, read from pixels,
and speech envelope.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.errors import run  # noqa: E402
from tools.proof.commands import VAE, Commands, shown  # noqa: E402
from tools.proof.inputs import Item, cut_speech, make_items, unseen_faces, unseen_sounds  # noqa: E402
from tools.proof.recipe import DEMO, FULL  # noqa: E402


def main() -> int:
    """Run the commands, measure, report; 1 when --full misses a goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the whole proof, with goals")
    parser.add_argument("--out", type=Path, help="folder for everything that is made (default: demo-run, with --full "
                                                 "demo-run/full)")
    parser.add_argument("--audio", type=Path, nargs="+", default=[], help="recordings of speech that shall drive the "
                                                                          "faces too; with --full")
    arguments = parser.parse_args()
    if arguments.audio and not arguments.full:
        parser.error("--audio belongs to the whole proof. Add --full.")
    recipe = FULL if arguments.full else DEMO
    out = (arguments.out or ROOT / "demo-run" / ("full" if arguments.full else "")).resolve()
    started = time.monotonic()
    commands = Commands(out, recipe)
    commands.begin()
    unseen = commands.media / "unseen"
    faces = unseen_faces(unseen)[:recipe.faces]
    sets = {"Synthesised speech": make_items(faces, unseen_sounds(unseen)[:recipe.sounds], recipe.seed)}
    if arguments.audio:
        sounds = cut_speech(arguments.audio, commands.result / "speech")
        sets["Real speech"] = make_items(faces, sounds, recipe.seed + 1000)
    commands.cache()
    commands.train()
    return report(commands, sets, started, has_goals=arguments.full)


def report(commands: Commands, sets: dict[str, list[Item]], started: float, *, has_goals: bool) -> int:
    """Generate before and after training, measure, write; print the tables and where everything is."""
    from tools.proof.measure import gap_goals, read_gaps
    from tools.proof.reference import read_clips, reconstruct, render
    from tools.proof.report import Proof, draw, gaps_markdown, goals_markdown, proof_markdown, write_report

    items = [item for several in sets.values() for item in several]
    videos = {when: commands.generate(when, items) for when in ("before", "after")}
    print("\nmeasuring", flush=True)
    proofs = [Proof(title, several) for title, several in sets.items()]
    pictures: list[Path] = []
    for proof in proofs:
        rendered = {item.name: render(item) for item in proof.items}
        proof.add("rendered", rendered)
        if has_goals:
            proof.add("reconstructed", reconstruct(rendered, VAE))
        for when in ("before", "after"):
            proof.add(when, read_clips({item.name: videos[when][item.name] for item in proof.items}))
        pictures += draw(proof, commands.result, "" if proof is proofs[0] else "real-")
    validations = read_gaps(commands.result / "lora" / "metrics.jsonl")
    goals = [goal for proof in proofs for goal in proof.goals()] + gap_goals(validations)
    text = "\n".join([*map(proof_markdown, proofs), gaps_markdown(validations),
                      *([goals_markdown(goals)] if has_goals else [])])
    print(f"\n{text}")
    written = write_report(commands.result, text, proofs, {
        "recipe": asdict(commands.recipe), "validations": validations, "goals": list(map(asdict, goals)),
        "seconds": [{"command": name, "seconds": round(seconds, 1)} for name, seconds in commands.seconds]})
    shown_paths = [videos["after"][items[0].name], *pictures, commands.result / "lora" / "loss_history.png", *written]
    print(f"done in {time.monotonic() - started:.0f} s:", *map(shown, shown_paths), sep="\n  ")
    return int(has_goals and not all(goal.is_met for goal in goals))


if __name__ == "__main__":
    run(main)
