"""What became of a network file: applied, unused, and notes for the user."""

from dataclasses import dataclass, field
from pathlib import Path

from common.errors import NetworkFileError

LISTED = 4


@dataclass
class FileReport:
    """Outcome of reading one file into a model or a network."""

    path: Path
    layout: str
    applied: int
    """Modules of the model that the file changed."""
    unused: list[str]
    """Modules that the file speaks of and the model does not have, as the file spells them."""
    others: list[str] = field(default_factory=list)
    """Keys that are no LoRA."""
    notes: list[str] = field(default_factory=list)

    def refuse_if_nothing_fits(self, has_conditions: bool = False) -> None:
        """NetworkFileError when no module was changed (a file of conditions alone is no error)."""
        if self.applied or (has_conditions and not self.unused):
            return
        first = ", ".join([*self.unused, *self.others][:LISTED]) or "nothing"
        raise NetworkFileError(f"{self.path}: none of its modules is in this model (layout: {self.layout}; it speaks "
                               f"of {first}). The file belongs to another kind of model.")

    def text(self) -> str:
        """One line, and a line more for what was not used and for each note."""
        lines = [f"{self.path.name}: {self.layout}, {self.applied} modules applied"]
        for what, names in (("not in this model", self.unused), ("no LoRA, left out", self.others)):
            if names:
                more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
                lines.append(f"  {len(names)} {what}: {', '.join(names[:LISTED])}{more}")
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)
