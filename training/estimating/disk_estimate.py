"""Disk that a run will need: how many checkpoints are there at once, how large they are, how much room is left."""

from dataclasses import dataclass
from pathlib import Path
import shutil

from training.checkpoints import CheckpointPlan


@dataclass(frozen=True)
class FileCounts:
    """Checkpoints of a run on disk."""

    most: int
    """At any moment; an old file goes after the new one is written."""
    left: int
    """When the run has ended, the final file included."""


def count_files(plan: CheckpointPlan, *, steps: int, steps_per_epoch: int) -> FileCounts:
    """What `Checkpoints` will write and delete in a run of `steps` steps."""
    events = []
    if plan.every_steps:
        events += [(step, 0, step) for step in range(plan.every_steps, steps + 1, plan.every_steps)]
    if plan.every_epochs:
        ends = ((epoch * steps_per_epoch, epoch) for epoch in range(1, steps // steps_per_epoch + 1))
        events += [(step, 1, epoch) for step, epoch in ends if epoch % plan.every_epochs == 0 and step < steps]
    first = int(plan.at_first)
    most, by_step, by_epoch = first, set[int](), set[int]()
    for _, kind, count in sorted(events):
        kept = by_epoch if kind else by_step
        kept.add(count)
        most = max(most, first + len(by_step) + len(by_epoch))
        if kind and plan.keep_epochs is not None:
            oldest = count - (plan.every_epochs or 0) * (plan.keep_epochs - 1)
            by_epoch -= {one for one in by_epoch if one < oldest}
        if not kind and plan.keep_steps is not None:
            by_step -= {one for one in by_step if one < count - plan.keep_steps}
    left = first + len(by_step) + len(by_epoch) + 1
    return FileCounts(max(most, left), left)


@dataclass(frozen=True)
class Disk:
    """Bytes in the run's folder."""

    checkpoint: int
    """One file."""
    state: int
    """All that exact resuming needs: trained weights in float32 and the optimiser's state."""
    counts: FileCounts
    free: int
    """On the disk of the folder."""
    states_kept: int = 0
    """State folders that stay; one more is there while the oldest is replaced."""

    @property
    def needed(self) -> int:
        """The most that will be there at once."""
        states = self.states_kept + 1 if self.states_kept else 0
        return self.counts.most * self.checkpoint + states * self.state


def free_bytes(folder: Path) -> int:
    """Room on the disk that `folder` is or will be on."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
