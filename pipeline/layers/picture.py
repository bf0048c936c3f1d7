"""The figures of the layers as curves, and the maps of some layers, as a PNG.

Shapes: G rows of a mean map, H heads, C vision tokens.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from alignkd.pipeline.console.picture_file import LAYERS, save_picture
from alignkd.pipeline.console.printing import format_count
from alignkd.pipeline.layers.compare import ComparedLayers
from alignkd.pipeline.layers.recommend import recommended_layers
from alignkd.pipeline.shards.view.attention.grids import square_grid
from alignkd.storage.tools.layers.rows import INFORMATIVE_NATS, Floats

MAX_MAPS = 12
DPI = 110
# Okabe and Ito's colours for colour-blind people
BLUE, GREEN, VERMILION, GREY = "#0072B2", "#009E73", "#D55E00", "#595959"


def draw_layers(compared: ComparedLayers, path: Path) -> None:
    """Write the picture: on top the figures by layer, below the mean map and an example row of at most 12 layers.

    The example is a row of the first sample (`ComparedLayers.examples`). Tokens whose grid is not known are drawn in
    one row in their order.
    """
    shown = _shown(compared)
    num_rows = 1 + bool(compared.scan.mean_maps)
    figure = Figure(figsize=(max(7.0, 1.1 * len(shown)), 3.2 + 1.5 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    curves, maps = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.2, 1.5 * num_rows]).flat
    _draw_curves(curves, compared)
    _draw_maps(maps, compared, shown, num_rows)
    save_picture(figure, path, LAYERS, dpi=DPI)


def _shown(compared: ComparedLayers) -> list[int]:
    """The layers whose maps are drawn: all, or some evenly spaced ones."""
    numbers = [found.layer for found in compared.layers]
    places = np.unique(np.linspace(0, len(numbers) - 1, min(MAX_MAPS, len(numbers))).astype(np.int64))
    return [numbers[place] for place in places]


def _draw_curves(figure: SubFigure, compared: ComparedLayers) -> None:
    axes, numbers = figure.subplots(), [found.layer for found in compared.layers]
    curves: list[tuple[str, str, list[Any]]] = [
        ("attention on vision tokens", GREY, [found.vision_mass for found in compared.layers]),
        ("sharpness", BLUE, [found.sharpness for found in compared.layers]),
        (f"informative: above {INFORMATIVE_NATS} nats", VERMILION, [found.informative for found in compared.layers]),
        ("cosine with the layer before", GREEN, [found.similarity for found in compared.layers]),
    ]
    for label, colour, values in curves:
        if any(value is not None for value in values):
            drawn = [np.nan if value is None else value for value in values]
            axes.plot(numbers, drawn, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=label)
    for layer in recommended_layers(compared.layers, compared.pairs):
        axes.axvline(layer, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlabel="decoder layer (dotted: recommended)", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.set_title(f"{compared.pairs} attention of {format_count(compared.samples, 'sample')}", fontsize="small")


def _draw_maps(figure: SubFigure, compared: ComparedLayers, shown: Sequence[int], num_rows: int) -> None:
    grid = figure.subplots(num_rows, len(shown), squeeze=False)
    for column, layer in enumerate(shown):
        values = [compared.examples[layer]] if layer in compared.examples else []
        if compared.scan.mean_maps:
            values.insert(0, compared.scan.mean_maps[layer].mean((0, 1)))
        for axes, shares_C in zip(grid[:, column], values, strict=False):
            _draw_map(axes, shares_C, is_square=_is_square(compared))
        grid[0][column].set_title(f"layer {layer}", fontsize="small")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    names = ["mean of all rows", "one row"] if compared.scan.mean_maps else ["one row"]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize="small")


def _is_square(compared: ComparedLayers) -> bool:
    """Whether the tokens of an image are taken for a square, or a rectangle that is nearly one."""
    tokens = compared.common_tokens
    return compared.vision_tokens is not None or (tokens is not None and math.isqrt(tokens) ** 2 == tokens)


def _draw_map(axes: Any, shares_C: Floats, *, is_square: bool) -> None:
    if is_square:
        axes.imshow(shares_C.reshape(square_grid(len(shares_C))), cmap="inferno", interpolation="nearest", vmin=0)
    else:
        axes.imshow(shares_C[None], cmap="inferno", interpolation="nearest", vmin=0, aspect="auto")
