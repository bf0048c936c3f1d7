"""Arguments and options that several commands of `alignkd data` have."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from alignkd.pipeline.console.checkpoint_options import processor_option, vision_config_option

Answers = Literal["given", "missing"]
Command = TypeVar("Command", bound=Callable[..., Any])


def token_limits(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """`2048,512` -> (512, 2048): ascending, without duplicates."""
    try:
        limits = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        limits = (0,)
    if limits[0] < 1:
        raise click.BadParameter(f"{value!r}, expected whole numbers above 0, separated by commas, such as 512,2048")
    return limits


def roles(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> Mapping[str, str]:
    """`user=human` -> {"user": "human"}."""
    found = {}
    for value in values:
        name, equals, speaker = value.partition("=")
        if not name or not equals or speaker not in ("human", "gpt", "system"):
            raise click.BadParameter(f"{value!r}, expected NAME=human, NAME=gpt or NAME=system")
        found[name] = speaker
    return found


def reading_options(command: Command) -> Command:
    """Add the options that decide how entries of data are read."""
    for option in (
        click.option("--system", help="System prompt of the samples that have none."),
        click.option(
            "--role", "role", multiple=True, callback=roles, metavar="NAME=SPEAKER",
            help="Who a role in the data is: human, gpt or system; may be repeated.",
        ),
        click.option(
            "--answers", type=click.Choice(["given", "missing"]), default="given", show_default=True,
            help="missing: questions may lack an answer, see `alignkd generate`.",
        ),
        click.option("--images", type=click.Path(path_type=Path), help="Folder of the images that are files."),
    ):  # fmt: skip
        command = option(command)
    return command


def pairs_option(command: Command) -> Command:
    """Add the option that reads preference data."""
    text = "Entries have a chosen and a rejected answer and are two samples each, as data.pairs."
    return click.option("--pairs", is_flag=True, help=text)(command)


def model_options(default: str | None) -> Callable[[Command], Command]:
    """Add the options that choose the model whose prompt and tokens are shown."""

    def add(command: Command) -> Command:
        command = vision_config_option(processor_option(command))
        for option in (
            click.option(
                "--checkpoint", default=default, show_default=True,
                help="Model whose tokenizer is used; no weights are read.",
            ),
            click.option(
                "--template", type=click.Choice(["plain", "v1"]), help="Prompt template of MobileVLM; by default v1."
            ),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


def listing_option(what: str) -> Callable[[Command], Command]:
    """`--list FILE`, with the help text `what`."""
    return click.option("--list", "listing", type=click.Path(path_type=Path), help=what)


def files_of(paths: tuple[Path, ...]) -> list[Path]:
    """The paths, and the files that folders and patterns among them mean."""
    from alignkd.vlm.data.formats.paths import data_files

    return [*paths, *(file for path in paths for file in data_files(path))]
