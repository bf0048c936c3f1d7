"""`alignkd plan`: disk, memory and time that a configuration needs, before anything runs."""

import re
from pathlib import Path
from typing import Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.console.numbers import FiniteFloat
from alignkd.pipeline.console.printing import json_option, print_json

SMALLEST_SIZE = 1 << 20
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?", re.IGNORECASE)


def parse_bytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """`24GiB`, `2TB`, `5000000` -> bytes; powers of 1024 with `i`, powers of 1000 without."""
    if value is None:
        return None
    match = _BYTES.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r}, expected a size such as 24GiB or 2TB")
    number, prefix, binary = match.groups()
    scale: int = (1024 if binary else 1000) ** " KMGTP".index(prefix.upper() or " ")
    size = round(float(number) * scale)
    if size < SMALLEST_SIZE and not prefix:
        raise click.BadParameter(f"{value!r} is {size} bytes; write the unit, such as 24GiB or 2TB")
    return size


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe; by default all.")
@click.option(
    "--gpu-memory",
    callback=parse_bytes,
    help="Memory of each device, such as 24GiB; by default the memory of --device.",
)
@click.option(
    "--host-memory", callback=parse_bytes, help="Memory of the training machine, such as 32GiB; by default of this one."
)
@click.option("--disk", callback=parse_bytes, help="Space for the store, such as 2TB; by default the free space.")
@click.option("--device", default="rtx3090", show_default=True, help="GPU to plan for, of the printed table.")
@click.option(
    "--devices", type=click.IntRange(min=1), default=1, show_default=True, help="Number of devices that train together."
)
@click.option("--samples", type=click.IntRange(min=1), help="Number of samples, if there is no data yet.")
@click.option(
    "--mean-tokens", type=FiniteFloat(1, 1 << 24), help="With --samples: mean number of text and vision tokens."
)
@click.option(
    "--image-tokens",
    type=click.IntRange(min=1),
    help="With --samples: vision tokens of an image, if they depend on it; by default those of 640 x 480 pixels.",
)
@click.option(
    "--supervised-share",
    type=FiniteFloat(0, 1),
    default=0.5,
    show_default=True,
    help="With --samples: share of the text tokens after the image that are supervised.",
)
@click.option("--count", type=click.IntRange(min=1), default=4096, show_default=True, help="Samples to count at least.")
@click.option(
    "--entries", type=FiniteFloat(min=0), help="Kept tokens per position, for logits of kind nucleus or sampled."
)
@click.option("--probe", type=click.IntRange(min=1), metavar="N", help="Run the teacher on N samples and measure.")
@json_option
@clean_errors
def plan(config: Path, stage: str | None, as_json: bool, **options: Any) -> None:
    """Estimate disk, memory and hours of CONFIG.

    Nothing is dumped or trained. A random part of the data is counted, and the config.json of each model is read. Of
    the weights only the vision towers are read, to compare them, and only if both checkpoints are on this machine;
    --probe also runs the teacher. How each figure is computed: docs/plan.md.

    Example: alignkd plan run.yaml --gpu-memory 24GiB --disk 2TB
    """
    with heavy_imports():
        from alignkd.pipeline.plan.report import plan_lines, training_plan_lines
        from alignkd.pipeline.plan.result import Plan, PlanOptions
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
        for line in plan_lines(each) if isinstance(each, Plan) else training_plan_lines(each):
            click.echo(line)
