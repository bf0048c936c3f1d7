"""Runs whose figures are known, and the data of their page."""

import json
import re
from pathlib import Path
from typing import Any

from alignkd.storage.schema.sealed_json import seal


def write_run(folder: Path, steps: int, *, finished: bool = True, validated: bool = False, **train: Any) -> Path:
    """A run with two losses, speed, and a configuration of these settings."""
    folder.mkdir(parents=True)
    lines = [
        {
            "step": step,
            "loss": 3.0 / step,
            "supervised": 2.0 / step,
            "attention": 1.0 / step,
            "samples_seen": 4 * step,
            "learning_rate": 1e-4 * step,
            "skipped": False,
            "seconds": 0.5 + step / 1000,
            "tokens_per_second": 1000.0 + step,
        }
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if validated:
        found = [{"step": step, "loss": 4.0 / step, "best_step": step, "best": 4.0 / step} for step in (1, steps)]
        (folder / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    run = {"data": {}, "store": {}, "train": {"output": str(folder), **train}}
    (folder / "run.json").write_text(json.dumps(run))
    if finished:
        (folder / "finished.json").write_bytes(seal({"step": steps}))
    return folder


def data_of(page: str) -> dict[str, Any]:
    """What the script shows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data
