"""What the output folder keeps of a tracker's run, so that a resumed training continues the same one; no torch."""

import json
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from alignkd.disk.whole_file import write_whole

FOLDER = "trackers"  # in the output folder
NO_ROW = -1
ANY_SETTINGS = ""  # of what is added to a run later


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The content of `OUTPUT/trackers/NAME.json`.

    Attributes:
        identifier: of the run at the tracker.
        settings: hash of the settings of the run.
        row: number of the last row that was handed over; NO_ROW for none.
        scores: the benchmark scores that were handed over.
        new: whether no earlier process began this run.
    """

    identifier: str
    settings: str
    row: int = NO_ROW
    scores: dict[str, float] = field(default_factory=dict)
    new: bool = False

    @classmethod
    def of(cls, output: Path, tracker: str, settings: str) -> Self:
        """That of an earlier process with the same settings, or ANY_SETTINGS; otherwise a new one.

        A run that was killed before its first checkpoint may start again with other settings: it is another run.
        """
        try:
            found = cls(**json.loads(kept_file(output, tracker).read_text(encoding="utf-8")))
            if settings in (found.settings, ANY_SETTINGS) and isinstance(found.row, int):
                return found
        except (OSError, ValueError, TypeError):
            pass
        return cls(identifier=uuid.uuid4().hex[:10], settings=settings, new=True)

    def write(self, output: Path, tracker: str) -> None:
        """Keep it.

        Raises:
            OSError: it cannot be written.
        """
        document = {name: value for name, value in asdict(self).items() if name != "new"}
        write_whole(kept_file(output, tracker), json.dumps(document) + "\n")

    def after(self, row: int) -> Self:
        """The same after a row was handed over."""
        return replace(self, row=row)


def kept_file(output: Path, tracker: str) -> Path:
    """Where it is kept."""
    return output / FOLDER / f"{tracker}.json"
