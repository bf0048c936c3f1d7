"""The `alignkd` command: parses, calls one public function, prints."""

import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.commands.ask import ask
from alignkd.pipeline.commands.configs import configs
from alignkd.pipeline.commands.data import data
from alignkd.pipeline.commands.dump import dump
from alignkd.pipeline.commands.models import models
from alignkd.pipeline.commands.plan import plan
from alignkd.pipeline.commands.report import report
from alignkd.pipeline.commands.shards import shards
from alignkd.pipeline.commands.stem import stem
from alignkd.pipeline.console import clean_errors, json_option, log_to_stderr, print_json
from alignkd.pipeline.runs.process import Program

CONFIG = click.argument("config", type=click.Path(path_type=Path))
STAGE = click.option("--stage", help="One stage of a recipe of several.")


@click.group(cls=Program)
@click.version_option(package_name="alignkd")
def main() -> None:
    """Offline distillation of vision-language models: run the teacher once, train any number of students."""


main.add_command(shards)
main.add_command(models)
main.add_command(ask)
main.add_command(data)
main.add_command(dump)
main.add_command(plan)
main.add_command(configs)
main.add_command(report)
main.add_command(stem)


@main.command()
@CONFIG
@STAGE
@json_option
@clean_errors
def train(config: Path, stage: str | None, as_json: bool) -> None:
    """Phase 2: train a student from the store.

    The teacher is not needed. Stop it any time and run it again: it goes on from the newest checkpoint. For several
    processes start it by torchrun or deepspeed, see docs/training.md.

    Example: alignkd train run.yaml
    """
    from alignkd.pipeline.changed_data import changed_data_notice
    from alignkd.pipeline.config.recipes import load_stage
    from alignkd.pipeline.runs.phases import is_first_process, run_train
    from alignkd.pipeline.runs.train_summary import summary

    log_to_stderr("alignkd.student_train")
    settings = load_stage(config, "train", stage)
    if is_first_process() and (notice := changed_data_notice(settings.data.conversations, settings.store.path)):
        click.echo(f"alignkd: {notice}", err=True)
    result = run_train(settings)
    if is_first_process():
        # a closed terminal is a reason to stop, and then nobody can be told
        with suppress(OSError) if result.interrupted_by is not None else nullcontext():
            if as_json:
                print_json(asdict(result))
            else:
                click.echo(summary(result), err=result.interrupted_by is not None)
    if result.interrupted_by is not None:
        sys.exit(128 + result.interrupted_by)


@main.command()
@CONFIG
@click.option("--launcher", default="", help="Starts the processes of training, as 'torchrun --nproc-per-node 4'.")
@json_option
@clean_errors
def run(config: Path, launcher: str, as_json: bool) -> None:
    """Dump, verify and train.

    Each phase is a process of its own; the stages of a recipe run one after the other. Stages that are finished are
    not done again.

    Example: alignkd run run.yaml
    """
    from alignkd.pipeline.runs.stages import run_stages

    reports = run_stages(config, as_json=as_json, launcher=launcher, say=click.echo)
    if as_json:
        print_json(reports)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder of the demo: a new one, an empty one, or one to go on with.",
)
@click.option("--quick", is_flag=True, help="Small data set and few steps: shows the way, not the effect.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Students per row.")
@click.option("--ablation", is_flag=True, help="One row per loss, and other attention pairs in place of tqv.")
@click.option(
    "--profile",
    type=click.Choice(["exact", "compact", "stem"]),
    help="store.profile of the dump; the demo's own is 16-bit targets with full logits.",
)
@click.option("--train-teacher", is_flag=True, help="Train the teacher afresh instead of using the shipped one.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="The models are tiny: a GPU gains nothing, and shows that alignkd runs on it.",
)
@json_option
@clean_errors
def demo(
    out: Path,
    quick: bool,
    seeds: int,
    ablation: bool,
    profile: str | None,
    train_teacher: bool,
    device: str,
    as_json: bool,
) -> None:
    """The whole pipeline on real handwriting, on the CPU.

    Example: alignkd demo --out demo-out
    """
    from alignkd.pipeline.demo.demo import run_demo
    from alignkd.pipeline.demo.report import plain_table
    from alignkd.vlm.hardware.devices import hide_gpus, usable_device

    if device == "cpu":
        hide_gpus()
    else:
        usable_device(device)
    report = run_demo(out, quick=quick, seeds=seeds, ablation=ablation, profile=profile, train_teacher=train_teacher)
    click.echo(f"\n{plain_table(report)}\n\n{out / 'report.md'}", err=as_json)
    if as_json:
        print_json(report)


if __name__ == "__main__":
    main()
