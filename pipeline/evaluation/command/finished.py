"""A finished evaluation of a configuration whose data cannot be read any more: there is nothing left to do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.pipeline.config.eval_place import RESULTS
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.sections.eval_config import EvalConfig
from alignkd.pipeline.evaluation.command.configured import evaluations
from alignkd.pipeline.evaluation.output import EvalOutput
from alignkd.pipeline.evaluation.run import check_data, made_with
from alignkd.student_train.output import student_folder
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class KeptEvaluation:
    """A finished evaluation.

    Attributes:
        folder: answers and scores, with a folder per model.
        results: model -> content of its `results.json`.
        problem: why the data cannot be read.
    """

    folder: Path
    results: dict[str, Any]
    problem: str


def kept_evaluation(config: RunConfig) -> KeptEvaluation | None:
    """The evaluation that the section `eval` requires, if it is finished and its data were removed.

    Returns:
        None if the data can be read, so that it can be run, or if it is not finished with the present settings and
        weights.

    Raises:
        InputError: a checkpoint is missing.
    """
    section, train = config.eval, config.train
    if section is None or train is None or (problem := _problem(section)) is None:
        return None
    if not student_folder(train.output).is_dir():
        return None
    results: dict[str, Any] = {}
    for model, settings in evaluations(config).items():
        found = _results(settings.out / RESULTS)
        if not all(_is_finished(found.get("benchmarks", {}).get(name), section.limit) for name in section.names):
            return None
        if not EvalOutput(settings.out).is_of(made_with(settings)):
            return None
        results[model] = found
    return KeptEvaluation(folder=section.folder(train.output), results=results, problem=problem)


def _problem(section: EvalConfig) -> str | None:
    try:
        for name in section.names:
            check_data(name, section.data)
    except InputError as error:
        return str(error)
    return None


def _results(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(file))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_finished(found: Mapping[str, Any] | None, limit: int | None) -> bool:
    """Whether a benchmark has the score of all questions that are asked with a limit."""
    if found is None:
        return False
    if found["limit"] is None:
        return found["headline"] is not None and (limit is None or found["questions"] <= limit)
    return bool(found["limit"] == limit and "part" in found)
