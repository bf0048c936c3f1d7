"""The style of the demo's pictures: no display, and Okabe and Ito's colours for colour-blind people."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from alignkd.disk.whole_file import written_whole

__all__ = ["BLUE", "GREEN", "GREY", "ROW_COLOURS", "STYLE", "VERMILION", "plt", "save"]

GREY, BLUE, GREEN, VERMILION = "#595959", "#0072B2", "#009E73", "#D55E00"
_SKY, _ORANGE, _PURPLE = "#56B4E9", "#E69F00", "#CC79A7"
ROW_COLOURS = (GREY, _SKY, _ORANGE, _PURPLE, BLUE, GREEN, VERMILION)
STYLE: Any = {"font.size": 12, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False}
DPI = 150


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and close it."""
    with written_whole(path) as aside:
        figure.savefig(aside, dpi=DPI, facecolor="white", format="png")
    plt.close(figure)
    return path
