"""A copy of previews in a Modal volume, where it can be fetched from while the run goes on."""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import shutil

from common.atomic import atomic_path
from common.logs import get_logger

log = get_logger(__name__)

VARIABLE = "OMNIAVATAR_MODAL_VOLUME"
MOUNT = Path("/vol")
FOLDER = Path("outputs/eval")


class ModalCopy:
    """Copies files into the mounted volume that the environment names, and tells how to fetch them."""

    def __init__(self, volume: str, mount: Path = MOUNT) -> None:
        self.volume, self.mount = volume, mount
        self._has_warned = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, mount: Path = MOUNT) -> "ModalCopy | None":
        """The copy that `OMNIAVATAR_MODAL_VOLUME` asks for; None where it is not set."""
        volume = environment.get(VARIABLE, "")
        return cls(volume, mount) if volume else None

    def copy(self, files: Sequence[Path]) -> None:
        """Copy the files; one warning where the volume is not mounted."""
        if not self.mount.is_dir():
            if not self._has_warned:
                log.warning("%s is set, and there is no %s: previews are not copied", VARIABLE, self.mount)
            self._has_warned = True
            return
        for file in files:
            with atomic_path(self.mount / FOLDER / file.name) as temporary:
                shutil.copyfile(file, temporary)
            if file.suffix == ".mp4":
                log.info("modal volume get %s %s ./%s", self.volume, (FOLDER / file.name).as_posix(), file.name)
