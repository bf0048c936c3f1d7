"""The demo's results on handwriting of the pool `test`: ten paired seeds of every released row.

    python benchmarks/demo_results.py --out demo-results [--rows supervised,align_kd] [--at-once 2]
    python benchmarks/demo_results.py --list          which rows are released, and when they were opened
    python benchmarks/demo_results.py --table         the tables, computed from the log
    python benchmarks/demo_results.py --write-docs    puts them into docs/results.md and README.md, with a picture
    python benchmarks/demo_results.py --pictures      losses and attention of the students in --out
    python benchmarks/demo_results.py --objectives    five seeds of each published method; also with the options above

A row with a grid in `demo_rows/grids.py` is released when its selection has ended and `pipeline/demo/recipes.py` has
the chosen settings. All students of the rows are trained before any of them is evaluated; `--log` then records the row
as opened, and afterwards which answers were right. A row in the log is not evaluated again unless its settings have
changed. A stopped run resumes.

Each released row also has a partner of the same cost: the supervised student, trained for the number of steps that took
as long as the row's steps in the trials of the selection (without the dump).
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from demo_rows.document_marks import write_between_marks
from demo_rows.objective_grids import OBJECTIVE_GRIDS
from demo_rows.openings import TEACHER, Opening, OpeningLog
from demo_rows.released import known_rows, released_rows, why_not_released
from demo_rows.seeds_picture import draw_seeds
from demo_rows.trials import TrialLog
from demo_selection import LOG as TRIALS

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.demo.demo import (
    Students,
    evaluate_models,
    make_stores,
    make_students,
    make_teacher,
    write_questions,
    write_training_set,
)
from alignkd.pipeline.demo.evaluate import read_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, begin
from alignkd.pipeline.demo.pictures.illustrate import draw_pictures
from alignkd.pipeline.demo.recipes import Recipe
from alignkd.pipeline.demo.results.figures import visual
from alignkd.pipeline.demo.results.report import accuracies
from alignkd.pipeline.demo.results.table import QUESTION_TYPES, differences, markdown_table, table
from alignkd.pipeline.demo.run_config import steps_of
from alignkd.pipeline.demo.settings import FULL, DemoSettings
from alignkd.pipeline.demo.training import train_students
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.devices import hide_gpus

SEEDS = tuple(range(10))
OBJECTIVE_SEEDS = SEEDS[:5]
LOG = TRIALS.with_name("demo_test.jsonl")
PROJECT = Path(__file__).parents[1]
PAGE, README, PICTURE = PROJECT / "docs/results.md", PROJECT / "README.md", PROJECT / "docs/pictures/results.png"
MARK = "tables of benchmarks/demo_results.py"
OBJECTIVE_MARK = "table of benchmarks/demo_results.py --objectives"
NOTHING_OPENED = "No method has been evaluated on `test` yet."
README_TYPES = ("position", "count", "exists")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-results"), show_default=True)
@click.option("--log", "log_file", type=click.Path(path_type=Path), default=LOG, help="Log of all openings.")
@click.option("--trials", type=click.Path(path_type=Path), default=TRIALS, help="Log of the selection.")
@click.option("--rows", default=known_rows(), show_default=True, help="Names of rows, separated by commas.")
@click.option("--at-once", default=2, show_default=True, help="Students that train at the same time, a thread each.")
@click.option("--list", "as_list", is_flag=True, help="Show which rows are released and opened; run nothing.")
@click.option("--table", "as_table", is_flag=True, help="Show the tables of the log; run nothing.")
@click.option("--write-docs", is_flag=True, help="Put tables and picture of the log into the documents; run nothing.")
@click.option("--objectives", is_flag=True, help="The rows of published methods, in place of --rows.")
@click.option("--pictures", is_flag=True, help="Draw losses and attention of the students in --out; train nothing.")
@clean_errors
def main(
    out: Path,
    log_file: Path,
    trials: Path,
    rows: str,
    at_once: int,
    as_list: bool,
    as_table: bool,
    write_docs: bool,
    objectives: bool,
    pictures: bool,
) -> None:
    """Train and evaluate the rows that the log does not have yet."""
    log, trial_log = OpeningLog(log_file), TrialLog(trials)
    names, seeds = [name for name in rows.split(",") if name], SEEDS
    if objectives:
        names, seeds = [*OBJECTIVE_GRIDS], OBJECTIVE_SEEDS
    recipes = released_rows(names, trial_log, FULL)
    if as_list:
        click.echo("\n".join(listed(recipes, log, trial_log, FULL)))
        return
    opened = opened_rows(recipes, log, FULL)
    if pictures:
        folder = DemoFolder(out.resolve())
        drawn = draw_pictures(folder, {row: [folder.student(row.name, seed) for seed in seeds] for row in opened})
        click.echo("\n".join(f"wrote {path}" for path in drawn.values()))
        return
    if not as_table and not write_docs:
        hide_gpus()
        check_released(recipes, trial_log, FULL)
        evaluate_rows(DemoFolder(out.resolve()), FULL, recipes, log, at_once=at_once, seeds=seeds)
        opened = opened_rows(recipes, log, FULL)
    if not opened:
        raise InputError(
            f"{log_file}: has no evaluation of {','.join(names)} with the present settings; run it without options"
        )
    report = read_report(opened, log, FULL, seeds if objectives else None)
    click.echo(tables(report))
    if write_docs and objectives:
        write_between_marks(PAGE, OBJECTIVE_MARK, tables(report))
    elif write_docs:
        write_between_marks(PAGE, MARK, tables(report))
        write_between_marks(README, MARK, short_table(report))
        draw_seeds(PICTURE, report)


def opened_rows(recipes: Sequence[Recipe], log: OpeningLog, settings: DemoSettings) -> list[Recipe]:
    """The rows that the log has with their present settings."""
    return [recipe for recipe in recipes if log.evaluated(Opening.of(recipe, settings))]


def listed(recipes: Sequence[Recipe], log: OpeningLog, trials: TrialLog, settings: DemoSettings) -> list[str]:
    """A line per row: its steps, and when it was evaluated or why it cannot be."""
    lines = []
    for recipe in recipes:
        line, reason = log.evaluated(Opening.of(recipe, settings)), why_not_released(recipe, trials, settings)
        status = f"evaluated {line['date']}" if line else "released" if reason is None else f"not released: {reason}"
        lines.append(f"{recipe.name}  {steps_of(recipe, settings)} steps  {status}")
    return lines


def check_released(recipes: Sequence[Recipe], trials: TrialLog, settings: DemoSettings) -> None:
    """Refuse rows whose settings are not those of their selection, before anything is trained."""
    reasons = [reason for recipe in recipes if (reason := why_not_released(recipe, trials, settings)) is not None]
    if reasons:
        raise InputError("; ".join(reasons))


def evaluate_rows(
    folder: DemoFolder,
    settings: DemoSettings,
    recipes: Sequence[Recipe],
    log: OpeningLog,
    *,
    at_once: int,
    seeds: Sequence[int] = SEEDS,
) -> None:
    """Train all students of the rows that the log does not have; then open one row after the other."""
    waiting = [recipe for recipe in recipes if log.evaluated(Opening.of(recipe, settings)) is None]
    begin(folder, asdict(settings))
    write_training_set(folder, settings)
    make_teacher(folder, settings, train_teacher=False)
    students: Students = {recipe: [folder.student(recipe.name, seed) for seed in seeds] for recipe in waiting}
    make_students(folder, settings, students)
    make_stores(folder, settings, students)
    train_students({student: steps_of(recipe, settings) for recipe in waiting for student in students[recipe]}, at_once)
    questions = write_questions(folder, settings, "test")
    if log.evaluated(teacher := Opening(TEACHER, {})) is None:
        log.open(teacher)
        evaluate_models(folder, [], questions)
        log.close(teacher, [read_evaluation(folder.teacher_evaluation)], questions, steps=0, seeds=[0])
    for recipe in waiting:
        log.open(opening := Opening.of(recipe, settings))
        evaluate_models(folder, students[recipe], questions)
        found = [read_evaluation(student.evaluation) for student in students[recipe]]
        log.close(opening, found, questions, steps=steps_of(recipe, settings), seeds=seeds)


def read_report(
    recipes: Sequence[Recipe], log: OpeningLog, settings: DemoSettings, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """The figures of opened rows, computed from the log and the questions: those of `accuracies`, and how many.

    Args:
        seeds: the students that are compared, with all of which each row was evaluated; None: all.
    """
    with TemporaryDirectory() as name:
        folder = DemoFolder(Path(name))
        write_training_set(folder, settings, pictures=False)
        questions = write_questions(folder, settings, "test", pictures=False)
        (teacher,) = log.evaluations(Opening(TEACHER, {}), questions)
        rows = {recipe: log.evaluations(Opening.of(recipe, settings), questions, seeds) for recipe in recipes}
        return {
            **accuracies(rows, teacher, settings, folder.training_set.conversations),
            "questions": {"visual": len(visual(teacher.answers)), "all": len(teacher.answers)},
            "times_opened": {recipe.name: log.times_opened(recipe.name) for recipe in recipes},
        }


def tables(report: Mapping[str, Any]) -> str:
    """Both tables and what they rest on, as markdown."""
    students, questions = report["students"], report["questions"]
    seeds = sorted({len(student["accuracy"]) for student in students.values()})
    opened = ", ".join(f"{student['label']} {report['times_opened'][name]}" for name, student in students.items())
    steps = ", ".join(f"{student['label']} {student['steps']}" for student in students.values())
    notes = (
        f"{questions['visual']} questions that need the picture and {questions['all'] - questions['visual']} others; "
        f"{'/'.join(map(str, seeds))} seeds. Steps: {steps}. Settings with which a row was opened so far: {opened}."
    )
    compared = differences(report)
    return "\n".join([markdown_table(table(report)), *([markdown_table(compared)] if compared else []), wrapped(notes)])


def short_table(report: Mapping[str, Any]) -> str:
    """The first table with a few of the types of questions."""
    rows = table(report)
    kept = [place for place, name in enumerate(rows[0]) if name not in QUESTION_TYPES or name in README_TYPES]
    return markdown_table([[row[place] for place in kept] for row in rows])


def wrapped(text: str, width: int = 100) -> str:
    """A paragraph with lines of at most `width` characters."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)) + "\n"


if __name__ == "__main__":
    main()
