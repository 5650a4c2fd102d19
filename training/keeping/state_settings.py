"""Settings of saved states: when, how many, and what a start in a folder with states does."""

from collections.abc import Iterable
from pathlib import Path

from common.config import Section, flag


class StateSection(Section):
    """Going on after a stop."""

    resume: str = flag("auto", "auto goes on from the newest whole state of this --output_name in --output_dir, if "
                               "there is one; or the folder of a state (NAME-step00000500-state)",
                       differs="auto is the default; order and place in the data, random states, loss history and all "
                               "counters are taken up too, so that the run ends as if it had never stopped")
    resume_weights_only: bool = flag(False, "take only the weights of the state: a new run that begins at step 1 with "
                                            "a fresh optimiser, for settings that a resume refuses")
    resume_new_data: bool = flag(False, "accept that the dataset, batch size or number of processes changed: optimiser "
                                        "and step are taken up, and a new epoch begins with the new data")
    force: bool = flag(False, "begin anew where an earlier run of this name is; its states and files are moved into a "
                              "folder NAME-before-DATE, and nothing is deleted")
    continue_training: bool = flag(False, "go on with a run that has stopped early or is sufficient "
                                          "(--min_sufficient_epochs)")
    min_sufficient_epochs: int | None = flag(
        None, "take a run as done when more than this many epochs are, and do not go on with it unless "
              "--continue_training, --force or a longer run is asked for", ge=1)
    save_state: bool = flag(False, "save the state with every checkpoint too",
                            differs="states are saved by the clock anyway (--save_state_every_n_minutes), after Ctrl-C "
                                    "and SIGTERM, and at the end")
    save_state_on_train_end: bool = flag(False, "accepted; the state at the end is always saved")
    save_state_every_n_steps: int | None = flag(None, "save the state every n steps", ge=1)
    save_state_every_n_minutes: float = flag(10.0, "save the state every n minutes, so that a crash costs no more; 0 "
                                                   "for not by the clock", ge=0)
    save_last_n_states: int = flag(2, "states that stay; the one before the newest is what is used when a disk spoils "
                                      "the newest", ge=1)

    def for_later_starts(self) -> "StateSection":
        """The same with each wish of a single start as it is by default."""
        once = ("resume", "resume_weights_only", "resume_new_data", "force", "continue_training")
        return self.model_copy(update={name: type(self).model_fields[name].default for name in once})

    def problems(self) -> Iterable[str]:
        """One way to go on."""
        if self.force and (self.resume != "auto" or self.resume_weights_only or self.resume_new_data):
            yield "--force begins anew, and --resume … goes on. Give one of them."
        if self.resume_weights_only and self.resume_new_data:
            yield "--resume_weights_only begins with a fresh optimiser anyway. Leave --resume_new_data out."
        if self.resume == "":
            yield "--resume is empty. It is auto, or the folder of a state."

    @property
    def resume_path(self) -> Path | None:
        """The state that was named; None for auto."""
        return None if self.resume in ("auto", "latest") else Path(self.resume)
