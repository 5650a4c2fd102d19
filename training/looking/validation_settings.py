"""Settings of validation; imports no torch, so that `--help` stays quick."""

from collections.abc import Iterable

from common.config import Section, flag

NEEDS_CLIPS = "needs files that are held out: --validation_split, --validation_count or --validation_items."


class ValidationSection(Section):
    """Validation: clips that are never trained on."""

    validation_split: float = flag(0.0, "share of the dataset's media files, 0 to 1, that is held out to measure on "
                                        "(at least one file); each with all clips that are cut from it", ge=0, le=1)
    validation_count: int | None = flag(None, "number of media files to hold out, in place of a share", ge=1)
    validation_items: list[str] = flag(
        [], "media files to hold out by name, in place of a share or a number; or a text file (.txt) with one name a "
              "line")
    validation_seed: int = flag(0, "decides which files are held out, and the noise they are measured with; it does "
                                   "not follow --seed, so that runs hold out the same files")
    validate_every_n_steps: int | None = flag(
        None, "measure every n steps, and at the start and the end of the run (default: ten times a run, at most every "
              "100 steps)", ge=1)
    max_validation_steps: int = flag(8, "held-out clips that are measured each time; with sound, a clip costs four "
                                        "forward passes a noise level", ge=1)
    validation_sigmas: list[float] = flag([0.3, 0.5, 0.7, 0.9], "noise levels to measure at, above 0 (clean) and up "
                                                                "to 1 (pure noise)")

    def problems(self) -> Iterable[str]:
        """One way to choose; levels that exist; nothing that waits for a choice."""
        ways = {"validation_split": bool(self.validation_split), "validation_count": self.validation_count is not None,
                "validation_items": bool(self.validation_items)}
        given = [f"--{name}" for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            yield f"{' and '.join(given)} {'both' if len(given) == 2 else 'all'} say what is held out. Give one."
        if not self.validation_sigmas:
            yield "--validation_sigmas needs at least one noise level, such as 0.5."
        for sigma in self.validation_sigmas:
            if not 0 < sigma <= 1:
                yield f"--validation_sigmas {sigma:g}: a noise level lies above 0 (clean) and up to 1 (pure noise)."
        if self.validate_every_n_steps is not None and not self.is_wanted:
            yield f"--validate_every_n_steps {NEEDS_CLIPS}"

    @property
    def is_wanted(self) -> bool:
        """Whether anything is held out."""
        return bool(self.validation_split > 0 or self.validation_count is not None or self.validation_items)
