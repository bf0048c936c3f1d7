"""Folders as `alignkd generate` leaves them, made by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(folder: Path, shards: Sequence[Sequence[dict[str, Any]]], *, planned: int | None = None) -> Path:
    """Write these entries, shard by shard.

    Args:
        planned: number of shards of the plan, where some are not finished.
    """
    for name in ("answers", "shards"):
        (folder / name).mkdir(parents=True)
    for number, entries in enumerate(shards):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (folder / "answers" / f"{number:08d}.jsonl").write_text(lines)
        (folder / "shards" / f"{number:08d}.json").write_text(json.dumps({"shard": number, "entries": len(entries)}))
    generation = {"num_samples": 4 * (planned or len(shards)), "shard_size": 4}
    (folder / "generation.json").write_text(json.dumps(generation))
    return folder
