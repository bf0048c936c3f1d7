"""Losses of several runs by step, one small plot per loss."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alignkd.pipeline.console.picture_file import REPORT, save_picture
from alignkd.pipeline.report.load import Run, losses_of

COLUMNS = 3
# A line through a single point is invisible, and through a few hardly seen: these get markers.
FEW_POINTS = 10


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Write the picture: running means, one line per run; one plot for each loss that a run has."""
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
            axes.plot(steps, values, linewidth=1.2, marker=marker, markersize=3.5, label=run.name)
        axes.set_title(term.replace("_", " "))
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend(fontsize="small")
    windows = " or ".join(map(str, sorted({run.window for run in runs})))
    figure.suptitle(f"running mean, number of steps: {windows}", fontsize="small")
    save_picture(figure, path, REPORT, dpi=110)
