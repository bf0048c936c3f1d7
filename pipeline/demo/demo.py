"""`alignkd demo`: the whole pipeline on real handwriting, each phase in its own process."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.config.yaml_core import dump_yaml
from alignkd.pipeline.demo.evaluate import evaluate, write_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths, begin, made_once
from alignkd.pipeline.demo.models import TEACHER_CHECKPOINT, write_student
from alignkd.pipeline.demo.pictures.illustrate import draw_pictures
from alignkd.pipeline.demo.processes import ALIGNKD, TEACHER_TRAINING, Command, run_commands
from alignkd.pipeline.demo.recipes import ABLATION, SHOWN, MoreScenes, Recipe, named_objectives, named_rows
from alignkd.pipeline.demo.results.report import make_report, write_report
from alignkd.pipeline.demo.run_config import generation_config, steps_of, write_run_config
from alignkd.pipeline.demo.settings import FULL, QUICK, TEMPLATE, DemoSettings
from alignkd.pipeline.demo.steps import Steps
from alignkd.pipeline.demo.training import train_students
from alignkd.pipeline.demo.world.dataset import DatasetFiles, write_dataset
from alignkd.pipeline.demo.world.scenes import Pool
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model

Students = Mapping[Recipe, Sequence[StudentPaths]]
"""Each row of the table with its students, one per seed."""


def run_demo(
    out: Path,
    *,
    quick: bool = False,
    seeds: int = 1,
    ablation: bool = False,
    rows: Sequence[str] = (),
    objectives: Sequence[str] = (),
    profile: str | None = None,
    train_teacher: bool = False,
) -> dict[str, Any]:
    """Run the demo, or resume the one in `out`; seeds and rows can be added to a finished demo.

    Progress is printed on stderr. The caller prints the table.

    Args:
        out: folder of all files of the demo.
        quick: use the small preset.
        seeds: number of students per row.
        ablation: add one row per loss, and rows with other attention pairs.
        rows: names of further rows.
        objectives: names of presets of published methods, each a further row; `all` for all of them.
        profile: profile of the stores; None uses the codecs of the preset.
        train_teacher: train a new teacher instead of using the shipped one.

    Returns:
        The content of `report.json`.

    Raises:
        InputError: the demo in `out` has other settings, there is no such row, or a step failed.
    """
    if seeds < 1:
        raise InputError(f"seeds: expected at least 1, found {seeds}; raise it")
    settings, folder = QUICK if quick else FULL, DemoFolder(out.resolve())
    methods = named_objectives(objectives)
    # without names the rows of a plain demo
    wanted = (*SHOWN, *ABLATION) if ablation else () if rows or methods else SHOWN
    recipes = named_rows([*(recipe.name for recipe in wanted), *rows, *methods])
    if profile is not None:
        settings = replace(settings, store={"profile": profile})
    begin(folder, {**asdict(settings), "train_teacher": train_teacher})
    students: Students = {row: [folder.student(row.name, seed) for seed in range(seeds)] for row in recipes}
    steps = Steps(folder.seconds_file)

    with steps("data", f"{settings.num_scenes} training scenes, {settings.num_eval_scenes} of other handwriting"):
        write_training_set(folder, settings)
        write_questions(folder, settings, "test")
    with steps("teacher", "training a new one" if train_teacher else "the shipped checkpoint"):
        make_teacher(folder, settings, train_teacher=train_teacher)
    with steps("students", f"{seeds} fresh, {len(recipes) * seeds} run configurations"):
        make_students(folder, settings, students)
    for row in {row.store.name: row for row in recipes}.values():
        config, store = students[row][0].config, folder.store(row.store)
        if row.store.more is not None:
            with steps(f"more {store.name}", f"{row.store.more.num} scenes, answers: {row.store.more.answers}"):
                write_more_scenes(folder, settings, row.store.more)
        with steps(f"dump {store.name}", f"phase 1: alignkd dump {config.relative_to(folder.root)}"):
            run_commands([alignkd("dump", config)])
        with steps(f"verify {store.name}", f"alignkd shards verify {store.relative_to(folder.root)}"):
            run_commands([alignkd("shards", "verify", store)])
    unfinished = {
        student: steps_of(row, settings)
        for row, group in students.items()
        for student in group
        if not student.evaluation.exists()
    }
    with steps("train", f"phase 2: alignkd train, {len(unfinished)} students, {sum(unfinished.values())} steps"):
        train_students(unfinished)
    with steps("evaluate", "greedy answers to the questions"):
        evaluate_models(folder, [*unfinished], folder.test_set)
    with steps("pictures", "losses, and the attention of each model"):
        pictures = draw_pictures(folder, students)
    options = {
        "quick": quick, "seeds": seeds, "ablation": ablation, "rows": ",".join(rows),
        "objectives": ",".join(objectives), "profile": profile, "train_teacher": train_teacher,
    }  # fmt: skip
    report = make_report(folder, students, settings, options, steps.seconds)
    write_report(folder, report, pictures)
    return report


def write_training_set(folder: DemoFolder, settings: DemoSettings, *, pictures: bool = True) -> None:
    """Write the training set, unless it is there; without `pictures` its conversations alone."""
    _write_scenes(
        folder.training_set, settings, num_scenes=settings.num_scenes, seed=settings.data_seed, pictures=pictures
    )


def write_questions(folder: DemoFolder, settings: DemoSettings, pool: Pool, *, pictures: bool = True) -> DatasetFiles:
    """Write questions about handwriting of the pool `test` or `development` as conversations of one turn each.

    Args:
        pictures: False writes the conversations alone.
    """
    num_scenes, seed = (
        (settings.num_eval_scenes, settings.eval_seed)
        if pool == "test"
        else (settings.development_scenes, settings.development_seed)
    )
    data = folder.dataset(pool)
    _write_scenes(data, settings, num_scenes=num_scenes, seed=seed, pool=pool, single_turn=True, pictures=pictures)
    return data


def write_more_scenes(folder: DemoFolder, settings: DemoSettings, more: MoreScenes) -> None:
    """Write the scenes that a row has in addition to the training set, and let the teacher answer them if it shall."""
    _write_scenes(folder.asked_set(more), settings, num_scenes=more.num, seed=settings.more_seed)
    if more.answers == "teacher":
        config = folder.root / "configs" / f"generate-{more.num}.yaml"
        write_whole(config, dump_yaml(generation_config(folder, settings, more)))
        run_commands([alignkd("generate", config)])


def make_stores(folder: DemoFolder, settings: DemoSettings, students: Students) -> None:
    """Dump and verify every store that the rows train from."""
    for row in {row.store.name: row for row in students}.values():
        if row.store.more is not None:
            write_more_scenes(folder, settings, row.store.more)
        verify = alignkd("shards", "verify", folder.store(row.store))
        run_commands([alignkd("dump", students[row][0].config), verify])


def _write_scenes(
    data: DatasetFiles,
    settings: DemoSettings,
    *,
    num_scenes: int,
    seed: int,
    pool: Pool = "train",
    single_turn: bool = False,
    pictures: bool = True,
) -> None:
    made_once(
        data.conversations.parent,
        lambda out: write_dataset(
            out,
            num_scenes=num_scenes,
            pool=pool,
            seed=seed,
            questions_per_scene=settings.questions_per_scene,
            single_turn=single_turn,
            pictures=pictures,
        ),
    )


def make_teacher(folder: DemoFolder, settings: DemoSettings, *, train_teacher: bool) -> None:
    """Make the teacher's checkpoint: a copy of the shipped one, or a new one trained in its own process."""
    if not train_teacher:
        if not TEACHER_CHECKPOINT.is_dir():
            raise InputError(f"{TEACHER_CHECKPOINT}: the shipped teacher is missing; use --train-teacher")
        made_once(folder.teacher, lambda out: shutil.copytree(TEACHER_CHECKPOINT, out))
        return
    training = settings.teacher_training
    options = {"--scenes": training.scenes, "--tower-steps": training.tower_steps, "--steps": training.steps}
    numbers = tuple(map(str, chain(*options.items())))
    log = folder.root / "logs" / "teacher.log"

    def train(out: Path) -> None:
        arguments = (TEACHER_TRAINING, "--out", str(out), *numbers)
        run_commands([Command(name="train the teacher", arguments=arguments, log=log)])

    made_once(folder.teacher, train)


def make_students(folder: DemoFolder, settings: DemoSettings, students: Students) -> None:
    """Make an untrained student per seed with the teacher's vision tower, and every student's run configuration."""
    teacher = load_model(folder.teacher)
    for recipe, group in students.items():
        for student in group:
            write = partial(write_student, teacher=teacher, seed=student.seed)
            made_once(folder.fresh_student(student.seed), write)
            write_run_config(folder, settings, recipe, student)


def evaluate_models(folder: DemoFolder, students: Sequence[StudentPaths], data: DatasetFiles) -> None:
    """Write the answers of the teacher and of `students` to the questions of `data`."""
    checkpoints = {student.evaluation: student.checkpoint for student in students}
    if not folder.teacher_evaluation.exists():
        checkpoints[folder.teacher_evaluation] = folder.teacher
    for file, checkpoint in checkpoints.items():
        evaluation = evaluate(
            checkpoint, data.conversations, data.images, template=TEMPLATE, vision_config=folder.vision_config
        )
        write_evaluation(evaluation, file)


def alignkd(*arguments: str | Path) -> Command:
    """An `alignkd` command whose output goes to the terminal."""
    words = tuple(map(str, arguments))
    return Command(name=f"alignkd {' '.join(words)}", arguments=(ALIGNKD, *words))
