"""Chooses the settings of the demo's rows on handwriting of the pool `development`.

    python benchmarks/demo_selection.py --out demo-selection [--rows supervised,align_kd] [--at-once 2]
    python benchmarks/demo_selection.py --rows objectives    the rows of published methods
    python benchmarks/demo_selection.py --list       the trials and which of them have ended
    python benchmarks/demo_selection.py --table      accuracy of every setting, as markdown
    python benchmarks/demo_selection.py --write-docs     puts this table into docs/results.md
    python benchmarks/demo_selection.py --rows objectives --chosen     what the chosen settings change in their rows

`demo_rows/grids.py` has the settings, `demo_rows/trials.py` the rule. Each trial runs `alignkd dump` (once per store),
`alignkd train` and the demo's evaluation, and then adds a line to `--log`. A stopped selection resumes: trials in the
log are not run again, and an unfinished training continues from its checkpoint. The pool `test` is not used.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import click
from demo_rows.document_marks import write_between_marks
from demo_rows.grids import GRIDS
from demo_rows.json_lines_log import Entry, versions
from demo_rows.objective_grids import OBJECTIVE_GRIDS
from demo_rows.trials import SEEDS, Trial, TrialLog, chosen, every_trial, first_round, second_round

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.demo.demo import (
    evaluate_models,
    make_stores,
    make_students,
    make_teacher,
    write_questions,
    write_training_set,
)
from alignkd.pipeline.demo.evaluate import read_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths, begin
from alignkd.pipeline.demo.processes import ALIGNKD, Command, run_commands
from alignkd.pipeline.demo.recipes import ROWS, Recipe
from alignkd.pipeline.demo.results.figures import visual, visual_accuracy
from alignkd.pipeline.demo.results.table import markdown_table
from alignkd.pipeline.demo.run_config import steps_of
from alignkd.pipeline.demo.settings import FULL, DemoSettings
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.devices import hide_gpus

DOCUMENT = Path(__file__).parents[1] / "docs" / "results.md"
MARK = "table of benchmarks/demo_selection.py"
LOG = Path(__file__).parent / "results" / "demo_selection.jsonl"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-selection"), show_default=True)
@click.option("--log", "log_file", type=click.Path(path_type=Path), default=LOG, help="Log of all trials.")
@click.option("--rows", default=",".join(GRIDS), show_default=True, help="Names of grids, separated by commas.")
@click.option("--at-once", default=2, show_default=True, help="Students that train at the same time, a thread each.")
@click.option("--list", "as_list", is_flag=True, help="Show the trials with their status; run nothing.")
@click.option("--table", "as_table", is_flag=True, help="Show the accuracies; run nothing.")
@click.option("--write-docs", is_flag=True, help="Put the accuracies into the document; run nothing.")
@click.option("--chosen", "as_chosen", is_flag=True, help="Show what the chosen settings change; run nothing.")
@clean_errors
def main(
    out: Path,
    log_file: Path,
    rows: str,
    at_once: int,
    as_list: bool,
    as_table: bool,
    write_docs: bool,
    as_chosen: bool,
) -> None:
    """Run the trials that are not in the log yet."""
    names, log = wanted_rows(rows), TrialLog(log_file)
    if as_list:
        click.echo("\n".join(listed(names, log, FULL)))
    elif as_chosen:
        click.echo("\n".join(chosen_changes(names, log, FULL)))
    elif write_docs:
        write_between_marks(DOCUMENT, MARK, table(names, log, FULL))
    elif as_table:
        click.echo(table(names, log, FULL))
    else:
        hide_gpus()
        select(DemoFolder(out.resolve()), FULL, names, log, at_once=at_once)
        click.echo(table(names, log, FULL))


def wanted_rows(rows: str) -> list[str]:
    """The names in the option `--rows`; `objectives` are all published methods."""
    given = [name for name in rows.split(",") if name]
    names = [name for one in given for name in (OBJECTIVE_GRIDS if one == "objectives" else [one])]
    if unknown := [name for name in names if name not in GRIDS]:
        raise InputError(f"--rows: {', '.join(unknown)} is not among {', '.join(GRIDS)}; choose some of these")
    return names


def trials_of(row: str, log: TrialLog, settings: DemoSettings) -> dict[Trial, float | None]:
    """The trials of a row that are known so far, in their order, with the accuracy of those that have ended."""
    found = log.accuracies(every_trial(row), settings)
    return {trial: found.get(trial) for trial in [*first_round(row), *second_round(row, found)]}


def select(folder: DemoFolder, settings: DemoSettings, rows: Iterable[str], log: TrialLog, *, at_once: int) -> None:
    """Run both rounds of every row, less the trials in the log."""
    begin(folder, asdict(settings))
    write_training_set(folder, settings)
    write_questions(folder, settings, "development")
    make_teacher(folder, settings, train_teacher=False)
    for row in rows:
        # the second call has the trials that the results of the first one have decided on
        for _ in range(2):
            waiting = [trial for trial, accuracy in trials_of(row, log, settings).items() if accuracy is None]
            run_trials(folder, settings, waiting, log, at_once)


def run_trials(folder: DemoFolder, settings: DemoSettings, trials: list[Trial], log: TrialLog, at_once: int) -> None:
    """Train and evaluate the students of these trials; each is logged when it ends."""
    if not trials:
        return
    grouped: dict[Recipe, list[StudentPaths]] = {}
    for trial in trials:
        grouped.setdefault(trial.recipe, []).append(trial.student(folder))
    make_students(folder, settings, grouped)
    make_stores(folder, settings, grouped)
    waiting = {train_command(trial.student(folder)): trial for trial in trials}

    def log_ended(done: list[Command]) -> None:
        for command in done:
            if (trial := waiting.pop(command, None)) is not None:
                log.append(finished(folder, settings, trial))
                click.echo(f"{trial.recipe.name}, seed {trial.seed}: done; {len(waiting)} left in this round", err=True)

    run_commands(list(waiting), at_once=at_once, on_tick=log_ended)


def train_command(student: StudentPaths) -> Command:
    """The training of a student, with one thread and its own log."""
    arguments = (ALIGNKD, "train", str(student.config))
    return Command(name=f"train {student.name}", arguments=arguments, log=student.log, threads=1)


def finished(folder: DemoFolder, settings: DemoSettings, trial: Trial) -> Entry:
    """Evaluate a trained student on the development questions; returns its line of the log."""
    student = trial.student(folder)
    evaluate_models(folder, [student], folder.dataset("development"))
    evaluation = read_evaluation(student.evaluation)
    lines = [json.loads(line) for line in student.metrics.read_text(encoding="utf-8").splitlines()]
    return {
        "row": trial.row,
        "setting": trial.setting.name,
        "seed": trial.seed,
        "steps": steps_of(trial.recipe, settings),
        "accuracy": visual_accuracy(evaluation),
        "by_type": evaluation.by_type,
        "pool": "development",
        "questions": len(visual(evaluation.answers)),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": trial.config(settings),
    }


def listed(rows: Iterable[str], log: TrialLog, settings: DemoSettings) -> list[str]:
    """A line per trial; those of the second round are known when the first one has ended."""
    lines = []
    for row in rows:
        for trial, accuracy in trials_of(row, log, settings).items():
            status = "waits" if accuracy is None else f"{100 * accuracy:.1f} %"
            lines.append(f"{row}  {trial.setting.name}  seed {trial.seed}  {status}")
    return lines


def chosen_changes(rows: Iterable[str], log: TrialLog, settings: DemoSettings) -> list[str]:
    """A line per row whose selection has ended: what the chosen setting changes, as `recipes.py` writes it."""
    lines = []
    for row in rows:
        if (best := chosen(row, log.accuracies(every_trial(row), settings))) is not None:
            changes = {name: dict(values) for name in ("train", "losses") if (values := getattr(best[0], name))}
            lines.append(f'"{row}": {changes},  # {best[0].name}')
    return lines


def table(rows: Iterable[str], log: TrialLog, settings: DemoSettings) -> str:
    """Per tried setting the accuracy with each seed and the mean of all, in %; the chosen setting of a row is bold."""
    cells = [["row", "setting", *(f"seed {seed}" for seed in SEEDS), "mean"]]
    for row in rows:
        found = log.accuracies(every_trial(row), settings)
        best = chosen(row, found) if row in ROWS else None  # of an experiment nothing is chosen
        for setting in GRIDS[row].settings:
            values = [found.get(Trial(row=row, setting=setting, seed=seed)) for seed in SEEDS]
            if not (numbers := [value for value in values if value is not None]):
                continue
            average = f"{100 * mean(numbers):.1f}" if len(numbers) == GRIDS[row].seeds else ""
            name = f"**{setting.name}**" if best is not None and best[0] == setting else setting.name
            cells.append([row, name, *("" if value is None else f"{100 * value:.1f}" for value in values), average])
    return markdown_table(cells)


if __name__ == "__main__":
    main()
