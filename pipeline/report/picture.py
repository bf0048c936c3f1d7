"""Losses of several runs by step, a small picture per term."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alignkd.pipeline.console.picture_file import REPORT, save_picture
from alignkd.pipeline.report.load import LOSSES, Run

COLUMNS = 3


def draw_curves(runs: Sequence[Run], path: Path, *, smooth: int) -> None:
    """Write the picture: running means, one line per run, terms that no run has left out."""
    terms = [term for term in LOSSES if any(term in run.curves for run in runs)]
    num_rows = -(-len(terms) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.0 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, term in enumerate(terms, start=1):
        axes = figure.add_subplot(num_rows, COLUMNS, number)
        for run in runs:
            # an empty line keeps a run's colour the same in every picture
            steps, values = zip(*run.curves[term], strict=True) if term in run.curves else ((), ())
            axes.plot(steps, values, linewidth=1.2, label=run.name)
        axes.set_title(term.replace("_", " "))
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        if number == 1:
            axes.legend(fontsize="small")
    figure.suptitle(f"mean of {smooth} steps", fontsize="small")
    save_picture(figure, path, REPORT, dpi=110)
