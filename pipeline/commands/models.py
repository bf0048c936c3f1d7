"""`alignkd models`: sizes of models, what they see of a sample, their self-checks, and whether two models fit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from alignkd.pipeline.console.checkpoint_options import processor_option, vision_config_option
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--pair", nargs=2, metavar="TEACHER STUDENT", help="Compare two checkpoints.")
@click.option("--check/--no-check", default=None, help="Run the self-checks; by default where weights are local.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the self-checks.",
)
@click.option("--device", help="Torch device of the self-checks; by default a GPU if there is one.")
@click.option(
    "--quantization", type=click.Choice(["none", "int8", "nf4"]), default="none", help="Check a quantised teacher."
)
@processor_option
@vision_config_option
@json_option
@clean_errors
def models(
    checkpoint: str | None,
    pair: tuple[str, str] | None,
    check: bool | None,
    dtype: str,
    device: str | None,
    quantization: Literal["none", "int8", "nf4"],
    processor: Literal["auto", "pil"],
    vision_config: Path | None,
    as_json: bool,
) -> None:
    """Show sizes of models, what they see, and self-checks.

    Without CHECKPOINT, the sizes of the official MobileVLM models are shown. For a CHECKPOINT with its weights on this
    machine, the model is loaded and compared with itself; the exit code is 1 if a comparison fails.

    Example: alignkd models --pair Qwen/Qwen3-VL-8B-Instruct Qwen/Qwen3-VL-2B-Instruct
    """
    if pair and checkpoint:
        raise click.UsageError(f"--pair names both models, but CHECKPOINT {checkpoint} is given too; leave it out")
    if pair:
        _show_pair(pair, processor, vision_config, as_json)
    elif checkpoint is None:
        _show_official(as_json)
    else:
        options = {"dtype": dtype, "device": device, "quantization": quantization}
        _show(checkpoint, processor, vision_config, check, options, as_json)


def _show_official(as_json: bool) -> None:
    from alignkd.pipeline.models.sizes import official_sizes, size_table

    sizes = official_sizes()
    if as_json:
        print_json([asdict(size) for size in sizes])
    else:
        click.echo(size_table(sizes))


def _show_pair(pair: tuple[str, str], processor: Any, vision_config: Path | None, as_json: bool) -> None:
    from alignkd.pipeline.config.checkpoint_config import PlannedModel
    from alignkd.pipeline.models.pair import compare, pair_lines

    teacher, student = (PlannedModel(name, vision_config, processor).checkpoint for name in pair)
    found = compare(teacher, student)
    if as_json:
        print_json(asdict(found))
    else:
        click.echo("\n".join(pair_lines(found)))
    if not found.losses:
        raise SystemExit(1)


def _show(
    name: str,
    processor: Any,
    vision_config: Path | None,
    check: bool | None,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    from alignkd.pipeline.config.checkpoint_config import PlannedModel
    from alignkd.pipeline.models.inspect import (
        Checked,
        checked_lines,
        has_inputs,
        inputs_lines,
        inputs_of,
        self_checks,
    )
    from alignkd.pipeline.models.sizes import size_table
    from alignkd.vlm.hardware.devices import TORCH_DTYPES

    model = PlannedModel(name, vision_config, processor)
    size = model.size
    if model.is_known and not check:
        # an official model that is not on this machine: its sizes need no file
        if as_json:
            print_json([asdict(size)])
        else:
            click.echo(size_table([size]))
        return
    inputs = inputs_of(model.checkpoint) if has_inputs(model.checkpoint) else None
    checked = Checked(state="not run", lines=("--no-check",))
    if check is not False:
        options["dtype"] = TORCH_DTYPES[options["dtype"]]
        checked = self_checks(model.checkpoint, fetch=bool(check), **options)
    if as_json:
        shown = asdict(size) | {"inputs": None if inputs is None else asdict(inputs), "self_checks": asdict(checked)}
        print_json([shown])
    else:
        lines = [size_table([size]), *([] if inputs is None else inputs_lines(inputs)), *checked_lines(checked)]
        click.echo("\n".join(lines))
    if checked.state == "failed":
        raise SystemExit(1)
