"""The evaluation that the section `eval` of a configuration requires: student, baseline, teacher."""

from collections.abc import Iterator
from pathlib import Path

from alignkd.pipeline.config.baseline import baseline_vision_config, check_baseline
from alignkd.pipeline.config.eval_place import RESULTS, EvaluatedModel, keep_place
from alignkd.pipeline.config.recipes import Stage, load_stages
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.evaluation.output import EvalOutput
from alignkd.pipeline.evaluation.run import EvalEnd, run_eval
from alignkd.pipeline.evaluation.settings import EvalSettings
from alignkd.pipeline.report.scores.evaluation import read_evaluation
from alignkd.storage.errors import disk_errors
from alignkd.student_train.output import student_folder
from alignkd.vlm.errors import InputError


def evaluated_stages(path: Path, stage: str | None) -> list[Stage]:
    """The stages of a file that have a section `eval`.

    Args:
        stage: name of the only stage; None for all.

    Raises:
        InputError: see `load_stages`; or there is no such section.
    """
    found = load_stages(path, "eval", only=stage)
    evaluated = [one for one in found if one.config.eval is not None]
    if not evaluated:
        where = "" if stage is None else f" of stage {stage}"
        raise InputError(f"{path}: section eval{where} is missing, alignkd eval needs it (docs/evaluation.md)")
    return evaluated


def evaluate(
    config: RunConfig, *, worker: str | None = None, force: bool = False
) -> Iterator[tuple[EvaluatedModel, Path, EvalEnd]]:
    """Evaluate the models of a configuration, one after the other, until a signal stops it.

    Args:
        worker, force: as of `EvalSettings`.

    Returns:
        Model, its folder of answers and scores, and how its evaluation ended.

    Raises:
        As `run_eval`. InputError: the student was not trained yet, or there is no such baseline.
    """
    settings = evaluations(config, worker=worker, force=force)
    assert config.train is not None and config.eval is not None
    output = config.train.output
    if not student_folder(output).is_dir():
        raise InputError(f"{student_folder(output)}: no such student yet; train it first (`alignkd train`)")
    check_baseline(config)
    for one in settings.values():
        EvalOutput(one.out).claim([one.data, Path(one.checkpoint)])
    with disk_errors(f"output {output}"):
        keep_place(output, config.eval.folder(output))
    for model, one in settings.items():
        end = run_eval(one)
        if model == "student" and not end.interrupted_by:
            _send_scores(config, one.out)
        yield model, one.out, end
        if end.interrupted_by:
            return


def _send_scores(config: RunConfig, folder: Path) -> None:
    """Scores of whole benchmarks and their average, for the trackers of the run."""
    # here, because it loads TensorBoard
    from alignkd.student_train.metrics.trackers.of_run import send_scores

    assert config.train is not None
    if set(config.train.report_to) <= {"tensorboard"} or not (folder / RESULTS).exists():
        return
    found = read_evaluation(folder, name="student")
    scores = {column.benchmark: one.value for column, one in found.numbers.items() if column.first is None}
    scores |= {"average": found.average}
    known = {name: value for name, value in scores.items() if value is not None}
    send_scores(config.train, known, uses_lora=config.train_job().trained.choice == "lora")


def evaluations(
    config: RunConfig, *, worker: str | None = None, force: bool = False
) -> dict[EvaluatedModel, EvalSettings]:
    """Model -> the settings of its evaluation, in the order in which they run."""
    section, train, student, teacher = config.eval, config.train, config.student, config.teacher
    assert section is not None and train is not None and student is not None
    trained = str(student_folder(train.output))
    found: dict[EvaluatedModel, EvalSettings] = {}
    for model in section.models:
        checkpoint, vision_config, processor = trained, student.vision_config, student.processor
        if model == "baseline":
            checkpoint = str(section.baseline)
            vision_config = baseline_vision_config(config)
        elif model == "teacher":
            assert teacher is not None
            checkpoint, vision_config, processor = teacher.checkpoint, teacher.vision_config, teacher.processor
        found[model] = EvalSettings(
            checkpoint=checkpoint,
            benchmarks=section.names,
            data=section.data,
            out=section.folder(train.output) / model,
            dtype=section.dtype,
            batch=section.batch,
            device=section.device,
            limit=section.limit,
            worker=worker,
            vision_config=vision_config,
            processor=processor,
            force=force,
        )
    return found
