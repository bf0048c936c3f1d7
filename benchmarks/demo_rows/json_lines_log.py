"""A log of one JSON object per line, forced to disk line by line, to which a benchmark adds each result."""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignkd.vlm.errors import InputError

Entry = dict[str, Any]
_REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class JsonLinesLog:
    """The log in a file, which need not exist."""

    path: Path

    def entries(self) -> list[Entry]:
        """All lines.

        Raises:
            InputError: a line is not a JSON object.
        """
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)]

    def _parsed(self, number: int, line: str) -> Entry:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            found = f"expected a JSON object, found {line[:40]!r}"
            raise InputError(f"{self.path}: line {number}: {found}; remove the line")
        return entry

    def append(self, entry: Entry) -> None:
        """Add a line and force it to disk.

        Raises:
            InputError: the last line is not complete, because the process that wrote it was killed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.entries()  # a line after an incomplete one would be lost with it
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def versions() -> dict[str, str]:
    """Versions of what computes, and the commit of this repository if git knows it."""
    git = subprocess.run(["git", "-C", _REPOSITORY, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    commit = {"commit": git.stdout.strip()} if git.returncode == 0 else {}
    return {"alignkd": version("alignkd"), "torch": version("torch"), "python": platform.python_version(), **commit}
