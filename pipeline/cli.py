"""The `alignkd` command: parses, calls one public function, prints."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipeline.ask_cli import ask
from pipeline.console import clean_errors, json_option, print_json
from pipeline.data.cli import data
from pipeline.models import models
from pipeline.shards_cli import shards

CONFIG = click.argument("config", type=click.Path(path_type=Path))
MAX_LISTED = 10


@click.group()
@click.version_option(package_name="alignkd")
def main() -> None:
    """Offline distillation of vision-language models: run the teacher once, train any number of students."""


main.add_command(shards)
main.add_command(models)
main.add_command(ask)
main.add_command(data)


@main.command()
@CONFIG
@json_option
@clean_errors
def dump(config: Path, as_json: bool) -> None:
    """Phase 1: run the teacher over the data set and write its targets to the store.

    Stop it any time and run it again: only shards that are not committed are computed.

    Example: alignkd dump run.yaml
    """
    from pipeline.config import load_run_config
    from pipeline.phases import run_dump

    result = run_dump(load_run_config(config, "dump"))
    if as_json:
        print_json(asdict(result))
        return
    for index, sample_id, reason in result.quarantined[:MAX_LISTED]:
        click.echo(f"quarantined: sample {sample_id!r} (index {index}): {reason}", err=True)
    if len(result.quarantined) > MAX_LISTED:
        rest = len(result.quarantined) - MAX_LISTED
        click.echo(f"quarantined: {rest} more, see `alignkd shards ls --json`", err=True)
    done = "nothing left to do" if not result.shards_written else f"wrote {result.shards_written} shards"
    click.echo(
        f"{done}: {result.num_records} of {result.num_samples} samples in the store, "
        f"{len(result.quarantined)} quarantined, {result.seconds:.1f} s"
    )


@main.command()
@CONFIG
@json_option
@clean_errors
def train(config: Path, as_json: bool) -> None:
    """Phase 2: train a student from the store; the teacher is not needed.

    Stop it any time and run it again: it goes on from the newest checkpoint.

    Example: alignkd train run.yaml
    """
    from pipeline.config import load_run_config
    from pipeline.phases import run_train

    result = run_train(load_run_config(config, "train"))
    if as_json:
        print_json(asdict(result))
    elif result.already_finished:
        click.echo(f"nothing left to do: {result.step} steps are done, student in {result.student}")
    elif result.interrupted_by is None:
        click.echo(f"trained {result.step} steps on {result.samples_seen} samples; student in {result.student}")
    if result.interrupted_by is not None:
        click.echo(f"alignkd: stopped at step {result.step}; run the same command again to go on", err=True)
        sys.exit(128 + result.interrupted_by)


@main.command()
@CONFIG
@json_option
@clean_errors
def run(config: Path, as_json: bool) -> None:
    """Dump, verify, train: each phase in a process of its own.

    Example: alignkd run run.yaml
    """
    from pipeline.config import load_run_config

    store = load_run_config(config, "run").store.path
    phases = {
        "dump": ["dump", str(config)],
        "verify": ["shards", "verify", str(store)],
        "train": ["train", str(config)],
    }
    reports = {}
    for phase, arguments in phases.items():
        if not as_json:
            click.echo(f"alignkd {' '.join(arguments)}")
        reports[phase] = run_phase(arguments, as_json)
    if as_json:
        print_json(reports)


def run_phase(arguments: list[str], as_json: bool) -> Any:
    """One `alignkd` command as a process of its own; its failure is ours."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments, *(["--json"] if as_json else [])]
    finished = subprocess.run(command, check=False, stdout=subprocess.PIPE if as_json else None)
    if finished.returncode:
        sys.exit(finished.returncode if finished.returncode > 0 else 128 - finished.returncode)
    return json.loads(finished.stdout) if as_json else None


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
@click.option("--quick", is_flag=True, help="Small data set and few steps: shows the way, not the effect.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Students per row.")
@click.option("--ablation", is_flag=True, help="One row per loss, and other attention pairs in place of tqv.")
@click.option("--train-teacher", is_flag=True, help="Train the teacher afresh instead of using the shipped one.")
@json_option
@clean_errors
def demo(out: Path, quick: bool, seeds: int, ablation: bool, train_teacher: bool, as_json: bool) -> None:
    """The whole pipeline on real handwriting, on a CPU.

    Example: alignkd demo --out demo-out
    """
    from pipeline.demo.demo import run_demo
    from pipeline.demo.report import plain_table

    report = run_demo(out, quick=quick, seeds=seeds, ablation=ablation, train_teacher=train_teacher)
    click.echo(f"\n{plain_table(report)}\n\n{out / 'report.md'}", err=as_json)
    if as_json:
        print_json(report)


if __name__ == "__main__":
    main()
