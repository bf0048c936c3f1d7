"""Draws the losses of the demo's students, and the attention of its models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter
from numpy.typing import NDArray

from alignkd.pipeline.demo.evaluate import Answer
from alignkd.pipeline.demo.pictures.attention_maps import AttentionMap
from alignkd.pipeline.demo.pictures.style import BLUE, GREY, ROW_COLOURS, STYLE, VERMILION, plt, save

TERM_TITLES = {
    "supervised": "supervised, cross-entropy in nats",
    "logit": "logits, reverse KL in nats",
    "attention": "attention, in the form of each row",
    "vision_all": "vision, squared error, all tokens",
    "vision_top": "vision, squared error, focused tokens",
}
# Average attention shows the scene unchanged; more attention is red, less is blue.
HEAT = LinearSegmentedColormap.from_list(
    "heat",
    [
        (0.0, to_rgba(BLUE, 0.8)),
        (0.5, to_rgba(BLUE, 0.0)),
        (0.5, to_rgba(VERMILION, 0.0)),
        (1.0, to_rgba(VERMILION, 0.8)),
    ],
)
MOST_DOUBLINGS = 3.0
_COLUMNS = 3
_SMOOTHED_SHARE = 0.04


def draw_losses(path: Path, metrics: Mapping[str, Sequence[Path]]) -> Path:
    """Every loss term over the steps, one panel per term, one line per row of the table (mean over its seeds).

    Args:
        path: the PNG to write.
        metrics: label -> `metrics.jsonl` of each seed.
    """
    curves = {label: [read_curves(file) for file in files] for label, files in metrics.items()}
    terms = [term for term in TERM_TITLES if any(term in seeds[0] for seeds in curves.values())]
    # Two curves are grey and blue, which differ clearly.
    colours = (GREY, BLUE) if len(curves) == 2 else ROW_COLOURS
    with plt.rc_context(STYLE):
        rows = -(-(len(terms) + 1) // _COLUMNS)  # the legend takes one panel
        figure, axes = plt.subplots(
            rows, _COLUMNS, figsize=(4.1 * _COLUMNS, 3.3 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(terms) :]:
            axis.axis("off")
        for term, axis in zip(terms, axes.flat, strict=False):
            for colour, (label, seeds) in zip(colours, curves.items(), strict=False):
                if term in seeds[0]:
                    _draw_curve(axis, [seed[term] for seed in seeds], label, colour)
            _label_axes(axis, TERM_TITLES[term])
        handles, labels = axes[0][0].get_legend_handles_labels()
        axes.flat[-1].legend(handles, labels, loc="center", frameon=False, fontsize=13)
        return save(figure, path)


def read_curves(file: Path) -> dict[str, NDArray[np.float64]]:
    """Term -> its values, float64 [steps], NaN at skipped steps; terms without any value are left out."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    values = {term: [np.nan if line.get(term) is None else line[term] for line in lines] for term in TERM_TITLES}
    curves = {term: np.array(found, dtype=np.float64) for term, found in values.items()}
    return {term: curve for term, curve in curves.items() if not np.isnan(curve).all()}


def _draw_curve(axis: Axes, seeds: Sequence[NDArray[np.float64]], label: str, colour: str) -> None:
    curve = np.nanmean(np.stack(seeds), axis=0)
    steps = np.arange(1, len(curve) + 1)
    axis.plot(steps, curve, color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(steps, _smoothed(curve), color=colour, linewidth=2, label=label)


def _smoothed(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running mean over a share of the run; the window is shorter at the ends."""
    half = max(1, round(_SMOOTHED_SHARE * len(curve) / 2))
    windows = [curve[max(0, step - half) : step + half + 1] for step in range(len(curve))]
    return np.array([np.nanmean(window) for window in windows])


def _label_axes(axis: Axes, title: str) -> None:
    axis.set(title=title, xlabel="optimiser step", ylabel="loss", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def draw_attention(path: Path, answers: Mapping[str, Answer], maps: Mapping[str, AttentionMap]) -> Path:
    """Draw one question: the scene, and over it each model's attention from the key word, relative to its average.

    Args:
        path: the PNG to write.
        answers: label -> answer of that model.
        maps: label -> attention of that model, with the same labels.
    """
    asked, shown = next(iter(answers.values())), next(iter(maps.values()))
    ratios = {label: np.log2(item.shares_hw / item.shares_hw.mean()) for label, item in maps.items()}
    most = min(MOST_DOUBLINGS, max(1.0, *(float(np.abs(ratio_hw).max()) for ratio_hw in ratios.values())))
    with plt.rc_context(STYLE):
        panels = 1 + len(maps)
        figure, axes = plt.subplots(1, panels, figsize=(2.9 * panels + 1.3, 3.9), layout="constrained")
        figure.suptitle(f"“{asked.question}”", fontsize=16, fontweight="bold")
        axes[0].imshow(shown.pixels_HWC)
        axes[0].set_title(f"the scene\nright answer: {asked.expected}")
        for axis, (label, ratio_hw) in zip(axes[1:], ratios.items(), strict=True):
            heat, answer = _draw_map(axis, shown.pixels_HWC, ratio_hw, most), answers[label]
            axis.set_title(f"{label}\nanswers {answer.found or 'nothing'}: {'right' if answer.right else 'wrong'}")
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        bar = figure.colorbar(heat, ax=axes, shrink=0.8, aspect=18, pad=0.012, ticks=MultipleLocator(1))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda doublings, _: _times(doublings)))
        bar.set_label(f"first-layer attention\nof “{shown.word}” to a place")
        return save(figure, path)


def _draw_map(axis: Axes, pixels_HWC: NDArray[np.float32], ratio_hw: NDArray[np.float32], most: float) -> AxesImage:
    height, width, _ = pixels_HWC.shape
    # Paler than the scene, so that ink and overlay both remain visible.
    axis.imshow(pixels_HWC.mean(axis=2), cmap="gray", vmin=-0.3, vmax=0.95)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    return axis.imshow(ratio_hw, cmap=HEAT, vmin=-most, vmax=most, interpolation="bicubic", extent=extent)


def _times(doublings: float) -> str:
    """-2 -> 1/4 x, 0 -> even, 1 -> 2 x."""
    factor = 2 ** round(abs(doublings))
    return "even" if not doublings else f"{factor} x" if doublings > 0 else f"1/{factor} x"
