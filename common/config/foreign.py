"""Flags of another trainer that we do not have, each with the answer that its user gets."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["renamed", "coming", "refused", "accepted"]


@dataclass(frozen=True)
class Foreign:
    """A flag that a user may bring from musubi-tuner and that no section declares.

    `renamed`, `coming` and `refused` end the run with `note`; `accepted` changes nothing here and says so in one line.
    """

    name: str
    """Without the dashes."""
    status: Status
    note: str
    """`renamed`: the new spelling. `coming`: what to do until then. `refused`/`accepted`: the reason."""

    @property
    def message(self) -> str:
        """The sentence that is shown when the flag is given."""
        openings = {
            "renamed": f"--{self.name} has another name here",
            "coming": f"--{self.name} is not here yet",
            "refused": f"--{self.name} is not offered",
            "accepted": f"--{self.name} is accepted and changes nothing",
        }
        return f"{openings[self.status]}: {self.note}"
