"""Options of the commands that open a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def vision_config_option(command: Command) -> Command:
    """Add `--vision-config`, for a vision tower whose config.json is not in the checkpoint."""
    given = click.Path(path_type=Path)
    return click.option("--vision-config", type=given, help="Folder with the vision tower's config.json.")(command)


def processor_option(command: Command) -> Command:
    """Add `--processor`, the image processor of models of transformers."""
    return click.option(
        "--processor",
        type=click.Choice(["auto", "pil"]),
        default="auto",
        show_default=True,
        help="Image processor of models of transformers; pil needs no torchvision.",
    )(command)
