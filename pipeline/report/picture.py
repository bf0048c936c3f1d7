"""Losses of several runs by step, one small plot per loss."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignkd.pipeline.console.picture_file import REPORT, save_picture
from alignkd.pipeline.report.load import Run, best_value, losses_of, moved_figures_of
from alignkd.pipeline.report.scores.picture import COLOURS, legend_columns, shown_name

COLUMNS = 3
# of a plot, in inches
WIDTH = 4.2
# A line through a single point is invisible, and through a few hardly seen: these get markers.
FEW_POINTS = 10


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Write the picture: running means, one line per run; one plot for each loss that a run has.

    Validation losses are dashed lines of the same colour. Figures that an objective moves follow as they are.
    """
    terms = [*losses_of(runs), *moved_figures_of(runs)]
    num_rows = -(-len(terms) // COLUMNS)
    figure = Figure(figsize=(WIDTH * COLUMNS, 3.0 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, term in enumerate(terms, start=1):
        axes = figure.add_subplot(num_rows, COLUMNS, number)
        for run, colour in zip(runs, cycle(COLOURS), strict=False):
            # an empty line keeps the legend complete
            points = run.curves.get(term) or run.moved.get(term)
            steps, values = zip(*points, strict=True) if points else ((), ())
            marker = "o" if len(steps) <= FEW_POINTS else None
            (line,) = axes.plot(
                steps, values, linewidth=1.2, marker=marker, markersize=3.5, color=colour, label=run.name
            )
            _draw_validation(axes, run, term, line.get_color())
        axes.set_title(term.replace("_", " "))
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(alpha=0.3)
        if number == 1:
            handles, names = axes.get_legend_handles_labels()
            shown = list(map(shown_name, names))
            columns = legend_columns(shown, WIDTH * COLUMNS)
            figure.legend(handles, shown, loc="outside lower center", ncols=columns, fontsize="small")
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
