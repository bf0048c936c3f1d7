"""`alignkd train`: phase 2, as one process or as a process of a launcher; its status; export of a checkpoint."""

import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.console.command_with_subcommands import CommandWithSubcommands
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.outputs import claim_folder
from alignkd.pipeline.console.printing import json_option, log_to_stderr, print_json, say
from alignkd.student_train.output import read_exported
from alignkd.vlm.errors import InputError


@click.group(cls=CommandWithSubcommands, invoke_without_command=True, subcommand_metavar="")
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe with several stages.")
@click.option(
    "--status",
    "output",
    metavar="OUTPUT",
    type=click.Path(path_type=Path),
    help="Show the progress of the run in OUTPUT; change nothing.",
)
@json_option
@clean_errors
def train(config: Path | None, stage: str | None, output: Path | None, as_json: bool) -> None:
    """Phase 2: train a student from the store.

    The teacher is not needed. You can stop the command at any time and run it again: training resumes from the
    newest checkpoint. To train with several processes, start it by torchrun or deepspeed, see docs/training.md.
    Write ./export if the configuration file is called export.

    Example: alignkd train run.yaml
    """
    if (config is None) == (output is None):
        raise click.UsageError("give either CONFIG, to train, or --status OUTPUT, to show the progress of a run")
    if output is not None:
        if stage is not None:
            raise click.UsageError("--stage needs CONFIG; --status takes the output folder of the stage")
        _show_status(output, as_json)
        return
    assert config is not None
    _train(config, stage, as_json)


@train.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--step", type=click.IntRange(min=1), help="Step of the checkpoint; by default the newest.")
@click.option("--best", is_flag=True, help="Take the step of the best validation.")
@click.option(
    "--out",
    "folder",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for student and adapters: new, empty, or used as --out before.",
)
@json_option
@clean_errors
def export(output: Path, step: int | None, best: bool, folder: Path, as_json: bool) -> None:
    """Export the student at a checkpoint of a run.

    OUTPUT is the output folder of a run, which may go on meanwhile. The student has the layout that a finished run
    exports. No store and no optimiser state is read.

    Example: alignkd train export out/align-kd --step 2000 --out student-2000
    """
    if best and step is not None:
        raise click.UsageError("give --step or --best, not both")
    _claim_export(output, folder)
    with heavy_imports():
        from alignkd.pipeline.runs.student.train_export import run_export

    log_to_stderr("alignkd.student_train")
    found = run_export(output, step=step, best=best, folder=folder)
    if as_json:
        print_json(asdict(found))
    else:
        click.echo(f"exported step {found.step} of {found.run}: student in {found.student}, {found.adapters}")


def _claim_export(output: Path, folder: Path) -> None:
    claim_folder("--out", folder, lambda path: read_exported(path) is not None, reads=[output], force=None)
    if folder.resolve().is_relative_to(output.resolve()):
        raise InputError(f"--out {folder}: lies in the output of the run {output}; choose a folder outside of it")


def _show_status(output: Path, as_json: bool) -> None:
    from alignkd.pipeline.runs.student.train_status import train_status
    from alignkd.pipeline.runs.student.train_status_lines import status_lines

    status = train_status(output)
    if as_json:
        print_json(asdict(status))
        return
    for line in status_lines(status):
        click.echo(line)


def _train(config: Path, stage: str | None, as_json: bool) -> None:
    """Train, print the result, and exit with the signal's code if one stopped the run."""
    with heavy_imports():
        from alignkd.pipeline.config.recipes import load_stage

    log_to_stderr("alignkd.student_train")
    settings = load_stage(config, "train", stage)  # an error shows before the trainer is imported, which takes seconds

    with heavy_imports():
        from alignkd.pipeline.runs.changed_data import changed_data_notice
        from alignkd.pipeline.runs.student.train import is_first_process, run_train, summary

    store = settings.trained_stores()  # of several, each was made from a data set of its own
    if is_first_process() and isinstance(store, Path | str):
        notice = changed_data_notice(settings.data_sets, store)
        if notice is not None:
            say(notice)
    result = run_train(settings)
    interrupted = result.interrupted_by is not None
    if is_first_process():
        # if a closed terminal stopped the run, there is nothing left to print to
        with suppress(OSError) if interrupted else nullcontext():
            if as_json:
                print_json(asdict(result))
            else:
                click.echo(summary(result), err=interrupted)
    if result.interrupted_by is not None:
        sys.exit(128 + result.interrupted_by)
