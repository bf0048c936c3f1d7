"""`alignkd plan`: what a configuration will take, before anything runs."""

import re
from pathlib import Path
from typing import Any

import click

from alignkd.pipeline.console import clean_errors, json_option, print_json
from alignkd.pipeline.runs.interrupts import ends_on_interrupt

SMALLEST_SIZE = 1 << 20
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE)


def parse_bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """`24GiB`, `2TB`, `500000` -> bytes; with `i` powers of 1024, without powers of 1000."""
    if value is None:
        return None
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r}, expected a size as 24GiB or 2TB")
    number, prefix, binary = match.groups()
    scale: int = (1024 if binary else 1000) ** " KMGTP".index(prefix.upper() or " ")
    size = round(float(number) * scale)
    if size < SMALLEST_SIZE:
        raise click.BadParameter(f"{value!r} is {size} bytes; write the unit, as 24GiB or 2TB")
    return size


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe; all by default.")
@click.option(
    "--gpu-memory", callback=parse_bytes, help="Memory of each device, as 24GiB; that of --device by default."
)
@click.option(
    "--host-memory", callback=parse_bytes, help="Memory of the machine that trains, as 32GiB; of this one by default."
)
@click.option("--disk", callback=parse_bytes, help="Room for the store, as 2TB; what is free there by default.")
@click.option("--device", default="rtx3090", show_default=True, help="A device of the table that is printed.")
@click.option(
    "--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Devices that train together."
)
@click.option("--samples", type=click.IntRange(min=1), help="Number of samples, where there is no data yet.")
@click.option("--mean-tokens", type=click.FloatRange(min=1), help="With --samples: mean of text and vision tokens.")
@click.option("--supervised-share", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="With --samples.")
@click.option("--count", type=click.IntRange(min=1), default=4096, show_default=True, help="Samples to count at least.")
@click.option("--entries", type=click.FloatRange(min=0), help="Kept tokens per position, if nucleus or sampled.")
@click.option("--probe", type=click.IntRange(min=1), metavar="N", help="Run the teacher on N samples and measure.")
@json_option
@clean_errors
def plan(config: Path, stage: str | None, as_json: bool, **options: Any) -> None:
    """Disk, memory and hours that CONFIG will take.

    Shown before anything runs: bytes of the store, memory of both phases, hours. Counts the data (a random part of it)
    and reads config.json of the models; of their weights only the vision towers, to compare them, where both
    checkpoints are on this machine, unless --probe asks for more. How each figure is computed: docs/plan.md.

    Example: alignkd plan run.yaml --gpu-memory 24GiB --disk 2TB
    """
    from alignkd.pipeline.plan.plan import PlanOptions
    from alignkd.pipeline.plan.report import plan_lines
    from alignkd.pipeline.plan.stages import plan_stages, summary

    options["probe"] = options["probe"] or 0
    with ends_on_interrupt():
        plans = plan_stages(config, stage, PlanOptions(**options))
    if as_json:
        print_json(plans[0].to_json() if len(plans) == 1 else summary(plans))
        return
    for number, each in enumerate(plans):
        if number:
            click.echo()
        for line in plan_lines(each):
            click.echo(line)
