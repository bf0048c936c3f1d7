"""What a generation has written."""

import json
from pathlib import Path
from typing import Any


def entries_of(folder: Path) -> list[dict[str, Any]]:
    """The entries of all shards in order."""
    lines = [line for path in sorted((folder / "answers").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def answers_of(entry: dict[str, Any]) -> list[str]:
    """The texts that the teacher wrote."""
    return [turn["value"] for turn in entry["conversations"] if "generated" in turn]


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file, without the status of workers."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".status" not in path.parts
    }
