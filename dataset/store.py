"""The cache: one safetensors file for each item, clip and feature."""

from collections.abc import Iterable, Mapping
from pathlib import Path
import re
import shutil
import time

from torch import Tensor

from common.atomic import TEMPORARY_SUFFIX
from common.errors import CacheError
from common.features import FeatureSpec
from common.logs import get_logger
from common.tensorfile import load_tensors, save_tensors
from dataset.header import EntryState, compare, expected_header
from dataset.index import CacheIndex, update_index
from dataset.items import Item
from dataset.jobs import FeatureJob
from dataset.open import Dataset
from dataset.spans import Span

log = get_logger(__name__)

_OURS = re.compile(r".+-[0-9a-f]{8}(_\d{5,}-\d{3,})?(_\d+x\d+)?\.(?P<feature>\w+)\.safetensors")
_MUSUBI = ("*_wan.safetensors", "*_wan_te.safetensors")
_FORGOTTEN_AFTER_S = 3600.0


def _changed_at(path: Path) -> float:
    """When a file was last changed; now where it is gone, because another process has renamed or removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


class CacheStore:
    """Where a dataset's features lie, what their headers must say, reading and writing them."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._remembered: set[str] = set()

    def entry_path(self, item: Item, span: Span | None, spec: FeatureSpec) -> Path:
        """File of an entry; only the parts of the key that the spec names stand in it."""
        name = item.key
        if "span" in spec.keyed_by:
            assert span is not None
            name += f"_{span.start:05d}-{span.frames:03d}"
        if "size" in spec.keyed_by:
            assert span is not None
            name += f"_{span.width}x{span.height}"
        return item.cache / f"{name}.{spec.name}.safetensors"

    def expected(self, item: Item, span: Span | None, job: FeatureJob) -> dict[str, str]:
        """Header that this run would write."""
        return expected_header(item, span if "span" in job.spec.keyed_by else None, job)

    def state(self, item: Item, span: Span | None, job: FeatureJob) -> EntryState:
        """Whether the entry is there and says what this run would write."""
        path = self.entry_path(item, span, job.spec)
        is_checked = item.is_checked or tuple(job.needs) == ("caption",)
        return compare(path, self.expected(item, span, job), is_checked=is_checked)

    def write(self, item: Item, span: Span | None, job: FeatureJob, tensors: Mapping[str, Tensor]) -> Path:
        """Check `tensors` against the spec and write the entry, whole or not at all. CacheError names what is wrong.

        The first entry of a job makes the cache remember it: a run that fails before, on wrong weights say, leaves the
        cache as it was.
        """
        own = span if "span" in job.spec.keyed_by else None
        job.spec.check(tensors, item.name, self.dataset.sizes(item, own))
        if job.spec.name not in self._remembered:
            self.remember([job])
        path = self.entry_path(item, span, job.spec)
        try:
            save_tensors(path, tensors, self.expected(item, span, job))
        except PermissionError as error:
            raise CacheError(f"{path.parent}: cannot be written ({error.strerror}). Mend its rights, or name another "
                             "cache_directory.") from error
        return path

    def read(self, item: Item, span: Span | None, spec: FeatureSpec) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header of an entry. CacheError when it is missing."""
        path = self.entry_path(item, span, spec)
        if not path.is_file():
            raise CacheError(f"{item.name}: no cached '{spec.name}' ({path}). Make it with {spec.command}.")
        return load_tensors(path)

    def remember(self, jobs: Iterable[FeatureJob]) -> None:
        """Note in every cache directory which encoders its features are made by from now on.

        Done before the first entry is written, so that after an interruption the old entries count as stale.
        """
        records = {job.spec.name: job.record() for job in jobs}
        self._remembered |= records.keys()
        for folder in self.dataset.cache_directories:
            update_index(folder, lambda index: index.setdefault("features", {}).update(records))

    def orphans(self, jobs: Iterable[FeatureJob] = ()) -> list[Path]:
        """Our entries that no item of the dataset has any more: other clips, sizes, sources that are gone.

        Nothing is deleted here. A feature counts as known when `jobs` or the index name it; other files are left out.
        """
        found: list[Path] = []
        given = {job.spec.name: job.spec for job in jobs}
        for folder in self.dataset.cache_directories:
            remembered = {name: FeatureJob.from_record(record).spec
                          for name, record in CacheIndex.load(folder).features.items()}
            specs = remembered | given
            wanted = {self.entry_path(item, span, spec) for item in self.dataset.items if item.cache == folder
                      for span in item.spans for spec in specs.values()}
            found += sorted(path for path in folder.glob("*.safetensors") if path not in wanted
                            and (match := _OURS.fullmatch(path.name)) and match["feature"] in specs)
        return found

    def musubi_note(self) -> str | None:
        """One line when musubi-tuner's own caches lie beside ours; they are neither used nor touched."""
        files = [path for folder in dict.fromkeys(self.dataset.cache_directories) for pattern in _MUSUBI
                 for path in folder.glob(pattern)]
        if not files:
            return None
        return (f"{len(files)} cache files of musubi-tuner in {files[0].parent} are left as they are and not used: "
                "they do not say what they were made from.")

    def sweep(self) -> int:
        """Remove temporary files and folders of writers that died more than an hour ago; return how many.

        Another process may sweep at the same time.
        """
        old = [path for folder in self.dataset.cache_directories for path in folder.glob(f".*{TEMPORARY_SUFFIX}*")
               if time.time() - _changed_at(path) > _FORGOTTEN_AFTER_S]
        for path in old:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        return len(old)
