"""The evaluations that belong to the folders that `alignkd report` is given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from alignkd.pipeline.config.eval_place import (
    RESULTS,
    EvaluatedModel,
    evaluations_in,
    evaluations_of,
    single_evaluations_in,
)
from alignkd.pipeline.report.load import run_folder, short_names
from alignkd.pipeline.report.scores.evaluation import Evaluation, read_evaluation
from alignkd.student_train.output import METRICS
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """What is compared.

    Attributes:
        listed: students and single evaluations in the order of their folders, then baselines, then teachers.
        baseline: the one of them with which the others are compared; None if there is none, or not one.
        baselines: names of those that are the baseline of a run.
    """

    listed: tuple[Evaluation, ...]
    baseline: Evaluation | None
    baselines: tuple[str, ...]


def is_evaluation(path: Path) -> bool:
    """Whether a path is an evaluation, or a folder of several, and no training run."""
    if path.name == METRICS or (path / METRICS).exists():
        return False
    return (
        path.name == RESULTS or (path / RESULTS).is_file() or bool(evaluations_in(path) or single_evaluations_in(path))
    )


def _with_contents(folders: Sequence[Path]) -> Iterator[Path]:
    """The folders; in place of one that holds evaluations of single checkpoints, those that are not given, too."""
    given = {folder.resolve() for folder in folders}
    for folder in folders:
        single = [] if (folder / RESULTS).is_file() or (folder / METRICS).exists() else single_evaluations_in(folder)
        if not single or "student" in evaluations_in(folder):
            yield folder
        yield from (one for one in single if one.resolve() not in given)


def with_baseline(paths: Sequence[Path], baseline: Path | None) -> list[Path]:
    """The paths, after the baseline if none of them is its folder."""
    if baseline is None or _folder(baseline).resolve() in {_folder(path).resolve() for path in paths}:
        return list(paths)
    return [baseline, *paths]


def load_evaluations(paths: Sequence[Path], *, baseline: Path | None = None) -> Evaluations:
    """The evaluations of training runs, of their baselines and teachers, and of the folders of evaluations.

    The same evaluation found twice, such as the teacher of two runs, is listed once. A run's baseline that is the
    student of another run is that run.

    Args:
        paths: output folders of training, or of `alignkd eval`.
        baseline: the one of them whose student or checkpoint is the baseline; None takes that of the runs.

    Raises:
        InputError: a file is not one of `alignkd eval`, or a folder is given twice; the baseline has no scores.
    """
    folders = list(map(_folder, paths))
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise InputError(f"{min(twice)}: given twice; compare different evaluations")
    folders = list(_with_contents(folders))
    found = [
        one
        for folder, name in zip(folders, short_names(folders) if folders else (), strict=True)
        for one in _in_folder(folder, name)
    ]
    listed = [one for one in found if one.model not in ("baseline", "teacher")]
    baselines = _joined(listed, [one for one in found if one.model == "baseline"])
    _joined(listed, [one for one in found if one.model == "teacher"])
    if baseline is not None:
        chosen: Evaluation | None = _chosen(listed, baseline)
    else:
        chosen = baselines[0] if len(baselines) == 1 else None
    return Evaluations(listed=tuple(listed), baseline=chosen, baselines=tuple(one.name for one in baselines))


def _folder(path: Path) -> Path:
    return path.parent if path.name == RESULTS else run_folder(path)


def _in_folder(folder: Path, name: str) -> Iterator[Evaluation]:
    if (folder / RESULTS).is_file():
        yield read_evaluation(folder, name=name)
        return
    for model, place in _models_in(folder).items():
        is_of_run = model == "student" and (folder / METRICS).exists()
        yield read_evaluation(place, name=name, model=model, run=folder if is_of_run else None)


def _models_in(folder: Path) -> dict[EvaluatedModel, Path]:
    return evaluations_of(folder) if (folder / METRICS).exists() else evaluations_in(folder)


def _joined(listed: list[Evaluation], found: Sequence[Evaluation]) -> list[Evaluation]:
    """Append evaluations of one kind, under its name, to a list where they are not there already.

    Returns:
        The entries of the list that they are.
    """
    new: list[Evaluation] = []
    for one in found:
        if not any(one.is_same(other) for other in (*listed, *new)):
            new.append(one)
    names = {one.name for one in listed}
    is_clear = len(new) == 1 and new[0].model not in names
    listed += [replace(one, name=str(one.model) if is_clear else f"{one.model} of {one.name}") for one in new]
    return [other for other in listed if any(one.is_same(other) for one in found)]


def _chosen(listed: Sequence[Evaluation], baseline: Path) -> Evaluation:
    folder = _folder(baseline)
    place = _models_in(folder).get("student", folder)
    for one in listed:
        if one.path.resolve() == place.resolve():
            return one
    raise InputError(f"--baseline {baseline}: has no scores; evaluate it by `alignkd eval`")
