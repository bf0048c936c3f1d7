"""What a run leaves in its output folder, by name."""

from pathlib import Path
from typing import Any

from storage.sealed_json import unseal

METRICS = "metrics.jsonl"
CONFIG = "config.json"
FINISHED = "finished.json"


def student_folder(output: Path) -> Path:
    """Where the trained student is, in the official checkpoint layout."""
    return output / "student"


def adapters_file(output: Path) -> Path:
    """Where the trained adapters are."""
    return output / "adapters.safetensors"


def read_finished(output: Path) -> dict[str, Any] | None:
    """What a finished run left (its state, deciding settings and last metrics), or None."""
    return unseal(output / FINISHED) if (output / FINISHED).exists() else None
