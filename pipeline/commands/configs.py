"""`alignkd configs`: the recipes that come with the package."""

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.console import clean_errors, json_option, print_json
from alignkd.pipeline.outputs import claim_file, force_option, never
from alignkd.vlm.errors import InputError

SUFFIX = ".yaml"


@click.command()
@click.argument("name", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Write the recipe to this file; an existing one is kept.")
@force_option
@json_option
@clean_errors
def configs(name: str | None, out: Path | None, force: bool, as_json: bool) -> None:
    """List, show or copy the ready recipes.

    A copy is made to have its paths edited: an existing file is replaced with --force alone.

    Example: alignkd configs short-rtx3090 --out short.yaml
    """
    if name is None:
        found = recipes()
        if as_json:
            print_json(found)
        else:
            width = max(map(len, found))
            for recipe, title in found.items():
                click.echo(f"{recipe.ljust(width)}  {title}")
        return
    text = recipe_text(name)
    if out is None:
        click.echo(text, nl=False)
        return
    claim_file("--out", out, never, reads=(), force=force)
    write_whole(out, text)
    click.echo(f"wrote {out}; set its paths, then `alignkd plan {out}` and `alignkd run {out}`")


def recipes() -> dict[str, str]:
    """Name -> first line of each recipe."""
    files = [file for file in _folder().iterdir() if file.name.endswith(SUFFIX)]
    titles = {file.name.removesuffix(SUFFIX): _title(file.read_text(encoding="utf-8")) for file in files}
    return dict(sorted(titles.items()))


def recipe_text(name: str) -> str:
    """The file of a recipe.

    Raises:
        InputError: no such recipe.
    """
    if name not in recipes():
        raise InputError(f"{name}: no recipe of that name; choose one of {', '.join(recipes())}")
    return (_folder() / f"{name}{SUFFIX}").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return resources.files("alignkd.pipeline.configs")


def _title(text: str) -> str:
    return text.splitlines()[0].lstrip("# ")
