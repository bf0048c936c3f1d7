"""`alignkd models`: sizes of the MobileVLM V2 family, or of a checkpoint."""

from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--vision-config", type=click.Path(path_type=Path), help="Folder with the vision tower's config.json.")
@json_option
@clean_errors
def models(checkpoint: str | None, vision_config: Path | None, as_json: bool) -> None:
    """Show shapes and sizes of models.

    Without CHECKPOINT, the official models are shown. Only config.json is read, no weights.

    Example: alignkd models mtgv/MobileVLM_V2-1.7B
    """
    from alignkd.pipeline.models.sizes import model_sizes, size_table

    sizes = model_sizes(checkpoint, vision_config)
    if as_json:
        print_json([asdict(size) for size in sizes])
    else:
        click.echo(size_table(sizes))
