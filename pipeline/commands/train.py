"""`alignkd train`: phase 2, as one process or as a process of a launcher."""

import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, log_to_stderr, print_json, say


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe with several stages.")
@json_option
@clean_errors
def train(config: Path, stage: str | None, as_json: bool) -> None:
    """Phase 2: train a student from the store.

    The teacher is not needed. You can stop the command at any time and run it again: training resumes from the
    newest checkpoint. To train with several processes, start it by torchrun or deepspeed, see docs/training.md.

    Example: alignkd train run.yaml
    """
    with heavy_imports():
        from alignkd.pipeline.config.recipes import load_stage

    log_to_stderr("alignkd.student_train")
    settings = load_stage(config, "train", stage)  # an error shows before the trainer is imported, which takes seconds

    with heavy_imports():
        from alignkd.pipeline.runs.changed_data import changed_data_notice
        from alignkd.pipeline.runs.train import is_first_process, run_train, summary

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
