"""Losses of several runs by step, one small plot per loss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alignkd.pipeline.console.picture_file import REPORT, save_picture
from alignkd.pipeline.report.load import Run, best_value, losses_of

COLUMNS = 3
# A line through a single point is invisible, and through a few hardly seen: these get markers.
FEW_POINTS = 10


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Write the picture: running means, one line per run; one plot for each loss that a run has.

    Validation losses are dashed lines of the same colour.
    """
    terms = losses_of(runs)
    num_rows = -(-len(terms) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.0 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, term in enumerate(terms, start=1):
        axes = figure.add_subplot(num_rows, COLUMNS, number)
        for run in runs:
            # an empty line keeps the colour of a run the same in every plot
            steps, values = zip(*run.curves[term], strict=True) if term in run.curves else ((), ())
            marker = "o" if len(steps) <= FEW_POINTS else None
            (line,) = axes.plot(steps, values, linewidth=1.2, marker=marker, markersize=3.5, label=run.name)
            _draw_validation(axes, run, term, line.get_color())
        axes.set_title(term.replace("_", " "))
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend(fontsize="small")
    windows = " or ".join(map(str, sorted({run.window for run in runs})))
    figure.suptitle(f"running mean, number of steps: {windows}", fontsize="small")
    save_picture(figure, path, REPORT, dpi=110)


def _draw_validation(axes: Axes, run: Run, term: str, colour: Any) -> None:
    """A dashed line through the validations, with a star at the best one."""
    if term not in run.validation:
        return
    steps, values = zip(*run.validation[term], strict=True)
    marker = "." if len(steps) <= FEW_POINTS else None
    axes.plot(steps, values, linewidth=1.2, linestyle="--", color=colour, marker=marker, markersize=3.5)
    best = best_value(run, term)
    if run.best_step is not None and best is not None:
        axes.plot([run.best_step], [best], marker="*", markersize=9, color=colour, linestyle="none")
