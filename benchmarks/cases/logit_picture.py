"""Draws bytes per position against the error of the gradient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from cases.logit_cases import Found

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KINDS = {"topk": ("#0072B2", "o"), "nucleus": ("#D55E00", "s"), "hidden": ("#009E73", "^"), "full": ("#595959", "D")}
STYLE: Any = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
GOAL = 0.98
LEAST_ERROR = 1e-6


def draw(path: Path, found: Sequence[Found]) -> None:
    """Draw one panel per set of positions; below the line, the cosine is better than the goal."""
    names = list(dict.fromkeys(one.positions for one in found))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3.6), sharey=True, layout="constrained")
        for axis, name in zip(axes, names, strict=True):
            here = [one for one in found if one.positions == name]
            for kind, (colour, marker) in KINDS.items():
                points = sorted((one.num_bytes, max(1 - one.cosine, LEAST_ERROR)) for one in here if kind in one.choice)
                axis.plot(*zip(*points, strict=True), marker=marker, color=colour, label=kind, lw=1, ms=5)
            axis.axhline(1 - GOAL, color="#999999", lw=1, ls="--")
            axis.set(xscale="log", yscale="log", xlabel="bytes per position")
            axis.set_title(name if "synthetic" in name else f"{name}, {here[0].entropy:.2f} nats", fontsize=11)
        axes[0].set_ylabel("1 - cosine to the exact gradient")
        axes[0].legend(frameon=False)
        figure.savefig(path, dpi=150)
        plt.close(figure)
