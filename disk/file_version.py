"""Size and time of a file, to detect that it changed while it is in use."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class FileVersion:
    """Size and time of a file, to detect changes since it was opened."""

    num_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, file: int | Path) -> "FileVersion":
        """The version of an open file, given by its descriptor, or of the file that has this path now."""
        status = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(status.st_size, status.st_mtime_ns)

    def __str__(self) -> str:
        changed = datetime.fromtimestamp(self.mtime_ns / 1e9, UTC).isoformat(timespec="milliseconds")
        return f"{self.num_bytes} bytes of {changed}"
