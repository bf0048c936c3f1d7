"""Names, titles and texts of the shipped recipes."""

from importlib import resources
from importlib.resources.abc import Traversable

from alignkd.vlm.errors import InputError

SUFFIX = ".yaml"


def recipe_titles() -> dict[str, str]:
    """Name -> first line of each recipe, sorted by name."""
    files = [file for file in _folder().iterdir() if file.name.endswith(SUFFIX)]
    titles = {file.name.removesuffix(SUFFIX): _title(file.read_text(encoding="utf-8")) for file in files}
    return dict(sorted(titles.items()))


def recipe_text(name: str) -> str:
    """The text of a recipe.

    Raises:
        InputError: no such recipe.
    """
    if name not in recipe_titles():
        raise InputError(f"{name}: no recipe of that name; choose one of {', '.join(recipe_titles())}")
    return (_folder() / f"{name}{SUFFIX}").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return resources.files("alignkd.pipeline.configs")


def _title(text: str) -> str:
    return text.splitlines()[0].lstrip("# ")
