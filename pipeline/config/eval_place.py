"""Where the evaluation of a training run lies: a folder per model, noted in the run's output folder; loads no torch."""

import json
from pathlib import Path
from typing import Literal, get_args

from alignkd.disk.opening import read_regular
from alignkd.disk.whole_file import write_whole

# the models that a configuration evaluates; each has a folder of its name
EvaluatedModel = Literal["student", "baseline", "teacher"]
EVALUATED: tuple[EvaluatedModel, ...] = get_args(EvaluatedModel)
RESULTS = "results.json"
PLACE, DEFAULT_FOLDER = "eval.json", "eval"


def keep_place(output: Path, folder: Path) -> None:
    """Note in the output folder of a run where its evaluation lies; relative to it where it lies inside.

    Raises:
        OSError: it cannot be written.
    """
    ours, theirs = output.resolve(), folder.resolve()
    place = theirs.relative_to(ours) if theirs.is_relative_to(ours) else theirs
    text = json.dumps({"out": str(place)}) + "\n"
    try:
        if read_regular(output / PLACE) == text.encode():
            return
    except FileNotFoundError:
        pass
    write_whole(output / PLACE, text)


def evaluations_of(output: Path) -> dict[EvaluatedModel, Path]:
    """Model -> its folder with scores, of the evaluation of a run; empty for a run without one."""
    return evaluations_in(place_of(output))


def evaluations_in(folder: Path) -> dict[EvaluatedModel, Path]:
    """The same, of the folder of an evaluation by a configuration."""
    return {model: folder / model for model in EVALUATED if (folder / model / RESULTS).is_file()}


def single_evaluations_in(folder: Path) -> list[Path]:
    """The folders below `folder` with scores of a single checkpoint, by name, such as those in `eval`.

    Those of `evaluations_in` are not among them, unless there is no student: `teacher` is then a name as any other.
    """
    if not folder.is_dir():
        return []
    models = evaluations_in(folder)
    belonging = models.values() if "student" in models else ()
    return sorted(place for place in folder.iterdir() if (place / RESULTS).is_file() and place not in belonging)


def place_of(output: Path) -> Path:
    """The folder of the evaluation of a run with this output folder."""
    try:
        found = json.loads(read_regular(output / PLACE))
        return output / str(found["out"])
    except (OSError, ValueError, TypeError, KeyError):
        return output / DEFAULT_FOLDER
