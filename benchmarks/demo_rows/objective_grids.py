"""The settings that are tried for each row of a published method: four of each, with one seed.

Each method is tried with two learning rates, and with its authors' weights and one change of them. These rows have a
smaller budget than the others; it is the same for every method. `supervised` is not tuned again: it has the larger
budget of `grids.py`.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from alignkd.pipeline.demo.recipes import AUTHORS, Recipe
from demo_rows.settings import Grid, Setting

OBJECTIVES_SETTINGS = 4
RATES = (2e-3, 4e-3)
# The second axis of each method, beside the authors' values: losses that are added to the labels', or their strength.
CHANGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "taid": ("with-labels", {"supervised": 1.0}),
    "llava_kd": ("relation-5", {"relation": 5.0}),
    "compodistill": ("attention-70", {"attention": 70.0}),
    "llava_mod": ("with-labels", {"supervised": 1.0}),
    "em_kd": ("logit-5", {"logit": 5.0}),
    "mcd": ("effect-keep-10", {"effect": 10.0, "keep": 10.0}),
    "bild": ("logit-10", {"logit": 10.0}),
    "sinkhorn": ("logit-10", {"logit": 10.0}),
}


def _grid(recipe: Recipe) -> Grid:
    name, losses = CHANGES[recipe.name]
    changes: tuple[tuple[str, Mapping[str, Any]], ...] = (("authors", {}), (name, losses))
    settings = tuple(
        Setting(name=f"rate-{rate:g}-{change}", train={"learning_rate": rate}, losses=values)
        for rate, (change, values) in product(RATES, changes)
    )
    return Grid(recipe=recipe, settings=settings, halving=False, seeds=1)


OBJECTIVE_GRIDS = {recipe.name: _grid(recipe) for recipe in AUTHORS}
"""Grids by the names of the methods' presets."""
