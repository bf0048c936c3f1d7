"""Evaluations whose numbers are known, in the files of `alignkd eval`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from alignkd.evaluation.table import table1_average

WriteEvaluation = Callable[..., Path]


@pytest.fixture(scope="session")
def write_evaluation() -> WriteEvaluation:
    """write_evaluation(folder, {"gqa": 57.0}, dtype="bfloat16"): the folder; scores in the units of Table 1.

    With `limit`, the scores are means over the first questions; a score None is one that is not there yet.
    """

    def write(
        folder: Path,
        row: Mapping[str, float | None],
        *,
        questions: int = 100,
        limit: int | None = None,
        sha256: str = "a",
        **about: Any,
    ) -> Path:
        found = {}
        for name, value in row.items():
            found[name] = {"questions": questions, "limit": limit, "no_score": None, "unreadable": [1]}
            if value is None:
                found[name] |= {"no_score": "3 of 100 questions are not asked yet"}
            elif limit is None:
                found[name] |= {"table_value": value}
            else:
                found[name] |= {"part": {"questions": limit, "mean_score": value / 100}, "no_score": "a part"}
            (folder / name).mkdir(parents=True)
            (folder / name / "questions.json").write_text(json.dumps({"sha256": sha256}))
        values = {name: value for name, value in row.items() if value is not None and limit is None}
        results = {
            "checkpoint": str(folder),
            "weights": str(folder),
            "dtype": "float16",
            "prompts": "original",
            "template": "v1:1",
            "notes": [],
            "average": table1_average(values),
            "benchmarks": found,
        }
        (folder / "results.json").write_text(json.dumps(results | about))
        return folder

    return write
