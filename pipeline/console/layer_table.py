"""The table of attention layers that `alignkd layers` and `alignkd shards stats` print."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkd.storage.tools.layers.figures import LayerFigures

_HEAD = ("layer", "vision mass", "sharpness", "informative", "surprise", "best head", "like before")


def layer_table(layers: "Sequence[LayerFigures]", sizes: Mapping[int, str], marked: Collection[int] = ()) -> list[str]:
    """A head and one line per layer; `-` where a figure is not defined.

    Args:
        sizes: layer -> the bytes of a sample.
        marked: layers that get a star.
    """
    rows = [(*_HEAD, "per sample"), *((*_cells(found), sizes[found.layer]) for found in layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    stars = ["", *(" *" if found.layer in marked else "" for found in layers)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) + star
        for row, star in zip(rows, stars, strict=True)
    ]


def _cells(found: "LayerFigures") -> tuple[str, ...]:
    return (
        str(found.layer),
        f"{found.vision_mass:.1%}",
        f"{found.sharpness:.3f}",
        _or_dash(found.informative, ".1%"),
        _or_dash(found.surprise, ".3f"),
        str(found.best_head),
        _or_dash(found.similarity, ".3f"),
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
