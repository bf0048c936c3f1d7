"""The golden cases of the six benchmarks: folders, answers files, and what the original scripts made of them."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkd.evaluation.answers import Answer, read_answers
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.score import Score

GOLDEN = Path(__file__).parents[1] / "golden" / "eval"
NAMES = tuple(BENCHMARKS)


def expected(name: str) -> dict[str, Any]:
    """What the original made of the answers to a benchmark."""
    values: dict[str, Any] = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))
    return values


def answers_to(name: str, file: str = "answers.jsonl") -> list[Answer]:
    """The answers of one of the answers files of a benchmark."""
    return read_answers(GOLDEN / name / file)


def scored(name: str, file: str = "answers.jsonl", *, as_original: bool = False) -> Score:
    """The score of one of the answers files of a benchmark."""
    return BENCHMARKS[name].score(GOLDEN / name / "data", answers_to(name, file), as_original=as_original)


def copied(name: str, to: Path) -> Path:
    """A copy of the folder of a benchmark, to be changed."""
    return Path(shutil.copytree(GOLDEN / name / "data", to / name))


def differences(found: Any, wanted: Any, place: str = "") -> list[str]:
    """Where `found` differs from `wanted`: counts and texts exactly, other numbers by more than 1e-9."""
    if isinstance(wanted, Mapping):
        missing = [f"{place}/{key}: missing" for key in wanted if key not in found]
        both = [key for key in wanted if key in found]
        return missing + [line for key in both for line in differences(found[key], wanted[key], f"{place}/{key}")]
    if isinstance(wanted, float) and isinstance(found, float):
        same = math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9)
    else:
        same = found == wanted and type(found) is type(wanted)
    return [] if same else [f"{place}: {found!r} instead of {wanted!r}"]
