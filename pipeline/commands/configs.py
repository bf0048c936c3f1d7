"""`alignkd configs`: the recipes that ship with the package."""

from pathlib import Path

import click

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import claim_file, force_option, never
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Write the recipe to this file; an existing one is kept.")
@force_option
@json_option
@clean_errors
def configs(name: str | None, out: Path | None, force: bool, as_json: bool) -> None:
    """List, show or copy the shipped recipes.

    You edit the paths in your copy, so an existing file is replaced only with --force.

    Example: alignkd configs short-rtx3090 --out short.yaml
    """
    from alignkd.pipeline.configs.catalogue import recipe_text, recipe_titles

    if name is None:
        titles = recipe_titles()
        if as_json:
            print_json(titles)
            return
        width = max(map(len, titles))
        for recipe, title in titles.items():
            click.echo(f"{recipe.ljust(width)}  {title}")
        return
    text = recipe_text(name)
    if out is None:
        click.echo(text, nl=False)
        return
    claim_file("--out", out, never, reads=(), force=force)
    write_whole(out, text)
    click.echo(f"wrote {out}; set its paths, then `alignkd plan {out}` and `alignkd run {out}`")
