"""The lines of a run's metrics files, checked: a file of a stranger, or of a disk that failed, is one line of error."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkd.student_train.output import BY_SOURCE, KIND_PREFIX
from alignkd.vlm.errors import InputError, one_line

# larger numbers are none that a run computed, and their sum is no number
LARGEST = 1e300
_COUNTS, _LARGEST_COUNT = {"step", "samples_seen", "samples"}, 1 << 63


def figures_in(content: bytes, file: Path, required: Sequence[str], *, otherwise: str) -> list[dict[str, Any]]:
    """The complete lines of a file; the last one of a run that is running or was killed may be incomplete.

    Args:
        content: of the file.
        file: for messages.
        required: names that every line has.
        otherwise: what follows the path if the content is not that of a run.

    Returns:
        Name -> number, None, or for `by_source` an object of such objects. What is no finite number is None.

    Raises:
        InputError: the content is another one, or several runs wrote the file at the same time.
    """
    found: list[tuple[int, dict[str, Any]]] = []
    number = 0
    try:
        for number, line in enumerate(content.decode().splitlines(keepends=True), 1):
            if line.endswith(("}\n", "}\r\n")):
                found.append((number, _figures(json.loads(line, parse_constant=lambda _: None), required)))
    except (ValueError, TypeError, RecursionError) as error:  # of text that is not UTF-8, of JSON, and our own
        where = f" (line {number}: {one_line(error)[:80]})" if number else ""
        raise InputError(f"{file}: {otherwise}{where}") from error
    _check_order(file, [(number, line["step"]) for number, line in found])
    return [line for _, line in found]


def _figures(line: Any, required: Sequence[str]) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise TypeError("no JSON object")
    if missing := [name for name in required if name not in line]:
        raise ValueError(f"no {', '.join(missing)}")
    sources = line.get(BY_SOURCE, {})
    if not isinstance(sources, dict) or not all(isinstance(source, dict) for source in sources.values()):
        raise TypeError(f"{BY_SOURCE} is not an object of objects")
    if not all("samples" in source for source in sources.values()):
        raise ValueError(f"{BY_SOURCE} without samples")
    found: dict[str, Any] = {name: _figure(name, value) for name, value in line.items() if name != BY_SOURCE}
    if sources:
        found[BY_SOURCE] = {
            source: {name: _figure(name, value) for name, value in figures.items()}
            for source, figures in sources.items()
        }
    return found


def _figure(name: str, value: Any) -> float | None:
    """A number; None for anything else, unless it is a count."""
    if name in _COUNTS or name.startswith(KIND_PREFIX):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LARGEST_COUNT:
            raise ValueError(f"{name} is not a count")
        return value
    if not isinstance(value, int | float) or not abs(value) < LARGEST:
        return None
    return None if name == "best_step" and isinstance(value, float) else value


def _check_order(file: Path, steps: Sequence[tuple[int, int]]) -> None:
    """Refuse a file that two runs wrote at the same time; `steps` are (line number, step)."""
    for (_, before), (number, step) in itertools.pairwise(steps):
        if step <= before:
            raise InputError(
                f"{file}: line {number} has step {step} after step {before}; several runs wrote the file at the same "
                "time, and their figures cannot be separated; train again into another output"
            )
