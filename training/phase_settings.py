"""The flag of the phases; imports no torch, so that `--help` stays quick. `training.phase_table` reads the file."""

from pathlib import Path
from typing import Any

import pydantic

from common.config import Section, flag


class PhaseSection(Section):
    """Phases: other data, and other ways to show them, from a step on."""

    phases: Path | None = flag(
        None, "TOML with a [[phases]] table for each phase of the run: the step that it starts at, the dataset's "
              "entries with their shares, and what differs in dropouts, lengths and noise (docs/phases.md)")

    @pydantic.field_validator("phases", mode="before")
    @classmethod
    def _refuse_tables(cls, value: Any) -> Any:
        if isinstance(value, list):
            raise ValueError("[[phases]] tables stand in a file of their own, which --phases names (phases = "
                             "\"phases.toml\" in a settings file)")
        return value
