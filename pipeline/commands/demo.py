"""`alignkd demo`: the whole pipeline on a small data set that ships with the package."""

from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json


def _names(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(filter(None, value.split(",")))


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder of the demo: a new one, an empty one, or one to resume.",
)
@click.option("--quick", is_flag=True, help="Small data set and few steps: shows the procedure, not the effect.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of students per row.")
@click.option("--ablation", is_flag=True, help="One row per loss, and other attention pairs in place of tqv.")
@click.option(
    "--rows",
    metavar="NAMES",
    callback=_names,
    default="",
    help="Names of rows, separated by commas, instead of the usual ones; the supervised row is always there.",
)
@click.option(
    "--objectives",
    metavar="NAMES",
    callback=_names,
    default="",
    help="Published methods in place of the usual rows, separated by commas: presets of docs/objectives.md, bild, "
    "sinkhorn; or all.",
)
@click.option(
    "--profile",
    type=click.Choice(["exact", "compact", "stem"]),
    help="The dump's store.profile; by default the demo stores 16-bit targets and full logits.",
)
@click.option("--train-teacher", is_flag=True, help="Train a new teacher instead of using the shipped one.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="The models are tiny: a GPU is not faster, it only shows that alignkd runs on it.",
)
@json_option
@clean_errors
def demo(
    out: Path,
    quick: bool,
    seeds: int,
    ablation: bool,
    rows: tuple[str, ...],
    objectives: tuple[str, ...],
    profile: str | None,
    train_teacher: bool,
    device: str,
    as_json: bool,
) -> None:
    """Run the whole pipeline on real handwriting, on the CPU.

    A teacher is dumped, students are trained with and without distillation, and their answers are compared.

    Example: alignkd demo --out demo-out
    """
    with heavy_imports():
        from alignkd.pipeline.demo.demo import run_demo
        from alignkd.pipeline.demo.results.report import too_little
        from alignkd.pipeline.demo.results.table import differences, plain_table, table
        from alignkd.vlm.hardware.devices import hide_gpus, usable_device

    if device == "cpu":
        hide_gpus()
    else:
        usable_device(device)
    report = run_demo(
        out,
        quick=quick,
        seeds=seeds,
        ablation=ablation,
        rows=rows,
        objectives=objectives,
        profile=profile,
        train_teacher=train_teacher,
    )
    tables = "\n\n".join(plain_table(found) for found in (table(report), differences(report)) if found)
    notes = "".join(f"{note}\n\n" for note in (too_little(report),) if note)
    click.echo(f"\n{tables}\n\n{notes}{out / 'report.md'}", err=as_json)
    if as_json:
        print_json(report)
