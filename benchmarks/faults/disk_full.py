"""A disk that is full while a run saves: ``python -m benchmarks.faults.disk_full`` (POSIX).

The limit on the size of a file (RLIMIT_FSIZE) stands for the disk: the same error at the same place, without a mount.
First no state fits any more while checkpoints do, then not even the result; each time the state before must be whole,
and the run that has room again must end as one that always had it.
"""

from collections.abc import Callable
from pathlib import Path
import sys
import tempfile

from benchmarks.faults.runs import Training, differences, prepare
from training.keeping.states import find_states, read_state

STEPS = ("--max_train_steps", "12", "--save_state_every_n_steps", "3")


def limited(size: int) -> Callable[[], None]:
    """What makes every file of a process end at `size` bytes."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def main() -> int:
    """Run and print; 1 where a goal is missed."""
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name))


def compare(folder: Path) -> int:
    """All runs, in `folder`."""
    data = prepare(folder)
    straight = Training(data, folder / "straight", more=STEPS)
    assert straight.finish() == 0, straight.said
    [state] = [path for path in find_states(straight.out, "t")][:1]
    sizes = sorted(path.stat().st_size for path in state.iterdir() if path.suffix == ".safetensors")
    result = (straight.out / "t.safetensors").stat().st_size
    goals: dict[str, bool] = {}

    full = Training(data, folder / "no-state", more=STEPS)
    (full.out).mkdir()
    code = full.finish(preexec_fn=limited((result + sizes[-1]) // 2))
    goals["no state fits: training goes on to its result"] = code == 0 and (full.out / "t.safetensors").exists()
    goals["… and says so"] = "could not be saved" in full.said and "Training goes on" in full.said
    goals["… the result is the same"] = "t.safetensors" not in " ".join(differences(straight, full, states=False))
    goals["… nothing unfinished is left"] = not full.rest and not find_states(full.out, "t")

    begun = Training(data, folder / "no-result", more=("--max_train_steps", "4", "--save_state_every_n_steps", "3"))
    assert begun.finish() == 0, begun.said
    again = Training(data, begun.out, more=STEPS)
    before = find_states(again.out, "t")
    (again.out / "t.safetensors").unlink()
    code = again.finish(preexec_fn=limited(result // 2))
    goals["not even the result fits: exit code 1 and a message"] = code == 1 and "no space left" in again.said
    goals["… the states before are whole"] = [read_state(path).path for path in before] == find_states(again.out, "t")
    goals["… nothing unfinished is left "] = not again.rest
    code = again.finish()
    unequal = differences(straight, again)
    goals["with room again it ends as if there had always been room"] = code == 0 and not unequal

    print(f"state {sum(sizes)} bytes in {len(sizes)} files, result {result} bytes\n\n| goal | met |\n|---|---|")
    for goal, is_met in goals.items():
        print(f"| {goal} | {'yes' if is_met else 'NO'} |")
    print("\n".join(unequal[:10]))
    return int(not all(goals.values()))


if __name__ == "__main__":
    sys.exit(main())
