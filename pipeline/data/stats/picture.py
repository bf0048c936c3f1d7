"""Draws the distribution of tokens as a small picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alignkd.pipeline.console.picture_file import DATA_STATS, save_picture
from alignkd.pipeline.data.stats.figures import DataStats
from alignkd.pipeline.data.stats.histogram import shown_length

BLUE, VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito: distinguishable for colour-blind people
NUM_BINS = 80
DPI = 150


def draw_lengths(stats: DataStats, path: Path) -> None:
    """Write a PNG: samples over tokens, and a line for each limit with the share of samples that it keeps."""
    limits = [limit.max_tokens for limit in stats.total.limits]
    longest = int(stats.lengths[-1]) if len(stats.lengths) else 1
    right = shown_length(longest, limits)  # longer samples are mentioned, not drawn
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    # Whole tokens per bin: bins with different numbers of lengths would look like a comb.
    width = -(-right // NUM_BINS)
    edges = np.arange(0, right + width, width) + 0.5
    axes.hist(stats.lengths, bins=edges, weights=stats.length_counts, color=BLUE)
    for limit in limits:
        if limit > right:
            continue
        axes.axvline(limit + 0.5, color=VERMILION, linestyle="--", linewidth=1)
        share = stats.length_counts[stats.lengths <= limit].sum() / stats.length_counts.sum()
        axes.annotate(
            f"{limit}: {share:.1%} fit",
            (limit + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=VERMILION,
        )
    beyond = int(stats.length_counts[stats.lengths > edges[-1]].sum())
    axes.set_xlabel("tokens, text + vision" + (f"; {beyond:,} longer samples, up to {longest:,}" if beyond else ""))
    axes.set_ylabel("samples")
    axes.set_xlim(0, edges[-1])
    axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path, DATA_STATS, dpi=DPI)
