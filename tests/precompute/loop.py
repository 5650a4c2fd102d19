"""Reads one clip again and again in two workers, for tests that stop it: ``python -m tests.precompute.loop data.toml``.

Prints the process numbers of the workers when both have read something.
"""

from pathlib import Path
import sys

from dataset.config import load_dataset_config
from dataset.open import open_dataset
from precompute.loading import ClipRequest, WorkerLoader, open_loader


def main() -> None:
    """Read until stopped."""
    item = open_dataset(load_dataset_config(Path(sys.argv[1]))).items[0]
    requests = [ClipRequest(item, item.spans[0], frozenset({"frames"}))] * 1_000_000
    with open_loader(2) as loader:
        assert isinstance(loader, WorkerLoader)
        for index, _ in enumerate(loader.load(requests)):
            if index == 10:
                sys.stdout.write(" ".join(str(process.pid) for process in loader.processes) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
