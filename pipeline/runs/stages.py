"""`alignkd run`: every phase of every stage, each in its own process."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from alignkd.pipeline.config.recipes import Stage, load_stages
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import takes_from_stem, tower_match
from alignkd.pipeline.runs.phase_process import run_alignkd
from alignkd.student_train.checkpoints.export import is_exported
from alignkd.student_train.distributed.launcher import meeting_point
from alignkd.student_train.distributed.ranks import accelerator
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.attention.layer_map import compared_layers
from alignkd.student_train.output import read_configuration, read_finished, student_folder
from alignkd.student_train.run.checks.machine import check_machine
from alignkd.student_train.run.output.claim import check_output
from alignkd.student_train.run.settings import starting_point
from alignkd.student_train.trained.checks import check_trained
from alignkd.vlm.data.open import open_data
from alignkd.vlm.errors import InputError

LAST, EVALUATION = "train", "eval"


class Kept(Protocol):
    """A finished evaluation: its folder, the results of each model, and why its data cannot be read."""

    @property
    def folder(self) -> Path: ...

    @property
    def results(self) -> dict[str, Any]: ...

    @property
    def problem(self) -> str: ...


def run_stages(
    path: Path,
    *,
    as_json: bool,
    check: Callable[[RunConfig], None],
    kept: Callable[[RunConfig], Kept | None],
    launcher: str = "",
    say: Any = print,
) -> dict[str, Any]:
    """Dump, verify, train and evaluate, stage after stage; what is finished is skipped.

    Args:
        path: configuration of one stage, or a recipe with several stages.
        as_json: collect the reports of all phases.
        check: refuses a stage before its teacher runs.
        kept: finds the evaluation of a stage, if it is finished and its data were removed.
        launcher: command line that starts the training's processes, such as `torchrun --nproc-per-node 4`.
        say: function that prints a line.

    Returns:
        Reports by phase; by stage, then phase, for a recipe. Empty without `as_json`.

    Raises:
        InputError: see `load_stages`.
        TrainError: inconsistent environment variables of a launcher.
    """
    if not launcher:
        meeting_point(os.environ)  # fail now: training would refuse the variables only after the teacher has run
    _check_training(path)
    reports: dict[str, Any] = {}
    for stage in load_stages(path, "run"):
        found = _run_stage(path, stage, as_json, shlex.split(launcher), say, check)
        if stage.config.eval is not None:
            found[EVALUATION] = _evaluated(path, stage, as_json, say, kept(stage.config))
        reports |= found if stage.name is None else {stage.name: found}
    return reports if as_json else {}


def _check_training(path: Path) -> None:
    """Refuse settings of training that cannot work, in any stage, before the first teacher runs.

    These are what this machine cannot do, and a choice of what is trained that does not fit the student. A student that
    the stage before makes has the shapes of that stage's own student. How many processes a launcher starts is not known
    here, so the global batch is divided as for one.
    """
    existing: TrainJob | None = None
    for stage in load_stages(path, "run"):
        job = stage.config.train_job()
        check_machine(job, device_type=accelerator(), processes=1)
        if existing is None or Path(str(job.student)).exists():
            existing = job
        if job.trained.choice != "all":
            student, losses = existing.open_student(), job.train.losses
            lowest = min(compared_layers(losses.attention_layers, student.config))
            check_trained(job.trained, student, losses.weights, attention_layer=lowest)


def _is_exported(output: Path, job: TrainJob) -> bool:
    return is_exported(output, job.open_student(), job.trained)


def _run_stage(
    path: Path, stage: Stage, as_json: bool, launcher: list[str], say: Any, check: Callable[[RunConfig], None]
) -> dict[str, Any]:
    assert stage.config.train is not None
    output = stage.config.train.output
    finished = finished_before(stage.config)
    if finished is not None and _is_exported(output, stage.config.train_job()):
        if not as_json:
            name = "" if stage.name is None else f"stage {stage.name}: "
            say(f"{name}nothing left to do: {finished['step']} steps are done, student in {student_folder(output)}")
        return {LAST: {"already_finished": True, **finished}}
    check_output(output)
    _check_validation_data(stage.config)
    _check_centres(stage.config)
    _check_tower_for_stem(stage.config)
    config = _config_of(path, stage)
    phases = {
        "dump": ["dump", *config],
        "verify": ["shards", "verify", str(stage.config.store.path)],
        LAST: ["train", *config],
    }
    if finished is None:
        check(stage.config)
    else:  # the student is exported again from the last checkpoint, which needs no teacher
        phases = {LAST: phases[LAST]}
    reports = {}
    for phase, arguments in phases.items():
        found = _run_phase(arguments, as_json, launcher if phase == LAST else [], say)
        reports[phase] = found if found is not None else finished_before(stage.config)
    return reports


def _evaluated(path: Path, stage: Stage, as_json: bool, say: Any, kept: Kept | None) -> Any:
    if kept is None:  # a process that asks what is left, and scores what is there
        return _run_phase([EVALUATION, *_config_of(path, stage)], as_json, [], say)
    if not as_json:
        name = "" if stage.name is None else f"stage {stage.name}: "
        say(f"{name}nothing left to evaluate: scores in {kept.folder}; the data cannot be read again ({kept.problem})")
    return kept.results


def _config_of(path: Path, stage: Stage) -> list[str]:
    return [str(path), *([] if stage.name is None else ["--stage", stage.name])]


def _run_phase(arguments: list[str], as_json: bool, launcher: list[str], say: Any) -> Any:
    """The report of a command, None without `as_json`.

    A launcher prints on stdout, so the report of its phase is read from the files of the run.
    """
    if not as_json:
        say(shlex.join([*launcher, "alignkd", *arguments]))
    return run_alignkd(arguments, as_json and not launcher, launcher)


def _check_validation_data(config: RunConfig) -> None:
    """Refuse conversations for validation that cannot be read, before the teacher runs.

    Raises:
        InputError: as `open_data`.
    """
    validation = None if config.train is None else config.train.validation
    if validation is not None and validation.data is not None:
        open_data(validation.data.data_set(config.data[0].images if len(config.data) == 1 else None))


def _check_centres(config: RunConfig) -> None:
    """Refuse class means that are not there, before the teacher runs.

    Raises:
        InputError: no such file.
    """
    centres = None if config.train is None else config.train.centres
    if centres is not None and not centres.is_file():
        raise InputError(
            f"train.centres {centres}: not a file; write it by `alignkd shards centres STORE --out {centres}` from a "
            "store of this teacher with logits 'hidden'"
        )


def _check_tower_for_stem(config: RunConfig) -> None:
    """Refuse targets from the stem for a student with another vision tower, before the teacher runs."""
    if not takes_from_stem(config):
        return
    usable, reason = tower_match(config)
    if usable is False:
        left = [f"store.{name}" for name in config.store.from_stem] or ["train.targets"]
        raise InputError(
            f"{', '.join(left)}: targets come from the teacher's stem, but {reason}; store them (store.profile "
            "compact), or use a student with the teacher's tower"
        )


def finished_before(config: RunConfig) -> dict[str, Any] | None:
    """The end of a stage that was finished with this configuration and from the same weights, otherwise None.

    The store may have been removed. If the configuration has changed, the result is None, and training itself compares
    every setting that affects the result.
    """
    assert config.train is not None
    finished = read_finished(config.train.output)
    if finished is None or not _same(_kept_configuration(config.train.output), config):
        return None
    job = config.train_job()
    start = starting_point(job, job.open_student())
    if any(finished["settings"].get(name) != value for name, value in start.items()):
        return None
    kept = ("step", "samples_seen", "skipped_steps", "metrics", "validation")
    return {name: finished[name] for name in kept if name in finished}


def _same(kept: RunConfig | None, config: RunConfig) -> bool:
    """Whether two configurations train equally.

    `store.inputs` left out may be the `reference` that it was by default. The evaluation comes after the training.
    """
    if kept is None:
        return False
    inputs = {one.store.inputs for one in (kept, config)}
    stores = [one.store.model_copy(update={"inputs": None}) for one in (kept, config)]
    first, second = (
        one.model_copy(update={"store": store, "eval": None}) for one, store in zip((kept, config), stores, strict=True)
    )
    return first == second and (len(inputs) == 1 or inputs == {None, "reference"})


def _kept_configuration(output: Path) -> RunConfig | None:
    """The configuration that a run kept; settings that an earlier version did not have get their defaults."""
    try:
        return RunConfig.model_validate(read_configuration(output))
    except ValidationError:
        return None
