"""A picture of the openings: the accuracy of every seed of every row, beside that of the teacher."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignkd.pipeline.demo.pictures.style import BLUE, GREY, STYLE, VERMILION, plt, save
from alignkd.pipeline.demo.recipes import SUPERVISED

_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_HEIGHT_OF_ROW = 0.7  # inches


def draw_seeds(path: Path, report: Mapping[str, Any]) -> Path:
    """Write the picture as PNG.

    Args:
        path: the file to write.
        report: the result of `alignkd.pipeline.demo.results.report.accuracies`.
    """
    with plt.rc_context(STYLE):
        return save(seeds_figure(report), path)


def seeds_figure(report: Mapping[str, Any]) -> Figure:
    """A line of points per row, one point per seed, with mean and recovered share of the gap."""
    students = list(report["students"].values())
    figure, axis = plt.subplots(figsize=(10.5, 1.5 + _HEIGHT_OF_ROW * len(students)), layout="constrained")
    for place, student in enumerate(students):
        _draw_row(axis, place, student)
    for model, label, style in (("majority", "most frequent answer", ":"), ("teacher", "teacher", "--")):
        accuracy = 100 * report[model]["accuracy"]
        axis.axvline(accuracy, color=GREY, linestyle=style, linewidth=1.2, zorder=0)
        axis.text(accuracy, -0.85, f"{label} {accuracy:.1f}", ha="center", va="bottom", color=GREY, fontsize=11)
    base = 100 * mean(report["students"][SUPERVISED]["accuracy"])
    axis.axvline(base, color=BLUE, linewidth=0.8, alpha=0.5, zorder=0)
    axis.set_yticks(range(len(students)), [student["label"] for student in students])
    axis.set(
        xlim=(20, 100), ylim=(len(students) - 0.5, -0.75), xlabel="right answers to questions that need the picture, %"
    )
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)
    return figure


def _draw_row(axis: Axes, place: int, student: Mapping[str, Any]) -> None:
    accuracies = [100 * accuracy for accuracy in student["accuracy"]]
    gap, middle = student["gap"], mean(accuracies)
    learns = gap is not None and gap["low"] is not None and gap["low"] > 0
    axis.scatter(
        accuracies, [place] * len(accuracies), s=46, color=VERMILION if learns else BLUE, alpha=0.45, linewidths=0
    )
    axis.vlines(middle, place - 0.22, place + 0.22, color="black", linewidth=2)
    share = f", {100 * gap['estimate']:.0f} % of the gap" if learns else ""
    axis.text(middle, place - 0.3, f"{middle:.1f}{share}", ha="center", va="bottom", fontsize=11, bbox=_BEHIND)
