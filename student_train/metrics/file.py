"""`metrics.jsonl`: one JSON object per optimiser step; only timings differ between a resumed and an unbroken run."""

import json
import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alignkd.disk.whole_file import write_whole
from alignkd.student_train.errors import TrainError, writing

# Numbers, true, false or None by name; `by_source` has an object of them for each source.
Metrics = dict[str, Any]


class MetricsLog:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> Metrics:
        """Drop the lines after `step`, which a resumed run writes again; return the last line kept, {} if none.

        Raises:
            TrainError: a line is not that of a step, or the file cannot be written.
        """
        try:
            lines = [json.loads(line) for line in self._complete_lines()]
            kept = [line for line in lines if line["step"] <= step]
        except (ValueError, KeyError, TypeError) as error:
            raise TrainError(
                f"{self.path}: damaged ({type(error).__name__}: {error}); restore it, or move it away to continue "
                "without the figures so far"
            ) from error
        with writing(self.path):
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return kept[-1] if kept else {}

    def append(self, values: Mapping[str, Any]) -> Metrics:
        """Write one line, with null for infinity and NaN; return what was written."""
        line: Metrics = _json_values(values)
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def _complete_lines(self) -> list[str]:
        if not self.path.exists():
            return []
        # a kill or a full disk may have cut the last line, also after the end of an object inside it
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("}\n")]


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory of this process on the device so far, MiB; on the host if the device is a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _json_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json_values(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
