"""The annotation of ScienceQA: `problems.json` and `pid_splits.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignkd.evaluation.folder import annotation
from alignkd.evaluation.listed import value_of
from alignkd.evaluation.reading import read_json
from alignkd.vlm.errors import InputError

_SPLITS, _SPLIT = "pid_splits.json", "test"


@dataclass(frozen=True)
class Problem:
    """A question of the test split: number of choices, index of the right one, whether it has an image."""

    num_choices: int
    answer: int
    has_image: bool


def read_annotation(folder: Path) -> dict[str, Problem]:
    """The problems of the test split by id, in the order of `pid_splits.json`.

    Raises:
        InputError: a file is missing or is not of ScienceQA.
    """
    path = annotation(folder, "sqa")
    splits_path = path.with_name(_SPLITS)
    problems, splits = read_json(path), read_json(splits_path)
    try:
        chosen = [(key, problems[key]) for key in splits[_SPLIT]]
        found = {
            key: Problem(len(value["choices"]), int(value["answer"]), value.get("image") is not None)
            for key, value in chosen
        }
        _check_answers(found)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{path} and {_SPLITS}: not those of ScienceQA ({value_of(error)}); copy both again") from None
    if not found:
        raise InputError(f"{splits_path}: split {_SPLIT} is empty; copy the file again")
    return found


def _check_answers(problems: Mapping[str, Problem]) -> None:
    for key, problem in problems.items():
        if not 0 <= problem.answer < problem.num_choices:
            raise ValueError(f"the answer to {key} is none of its {problem.num_choices} choices")
