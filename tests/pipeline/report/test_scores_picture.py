"""The picture of the scores: what is drawn where, not its pixels."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes
from matplotlib.text import Annotation
from PIL import Image

from alignkd.pipeline.report.report import make_report
from alignkd.pipeline.report.scores.picture import axis_range, can_be_drawn, draw_scores, radius, scores_figure

WriteEvaluation = Callable[..., Path]
ROWS = {
    "supervised": {"gqa": 56.0, "sqa": 54.0, "textvqa": 40.0, "mme": 1200.0, "mmbench": 53.0, "pope": 80.0},
    "align-kd": {"gqa": 58.0, "sqa": 56.0, "textvqa": 45.0, "mme": 1300.0, "mmbench": 57.0, "pope": 90.0},
    "middle": {"gqa": 57.0, "sqa": 55.0, "textvqa": 42.5, "mme": 1250.0, "mmbench": 55.0, "pope": 85.0},
}


def figure_of(folders: list[Path]) -> Figure:
    comparison = make_report(folders).comparison
    assert comparison is not None
    return scores_figure(comparison)


def polygons(figure: Figure) -> dict[str, list[float]]:
    """Name -> radius on each axis."""
    (axes,) = figure.axes
    found = {}
    for line in axes.lines:
        angles, radii = (np.asarray(values, float) for values in line.get_data())
        np.testing.assert_allclose(angles[:-1], 2 * math.pi * np.arange(len(angles) - 1) / (len(angles) - 1))
        np.testing.assert_equal((angles[-1], radii[-1]), (angles[0], radii[0]))  # closed
        found[str(line.get_label())] = radii[:-1].tolist()
    return found


def test_each_axis_has_its_own_range(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    figure = figure_of([write_evaluation(tmp_path / name, row) for name, row in ROWS.items()])
    (axes,) = figure.axes
    assert isinstance(axes, PolarAxes)
    found = polygons(figure)
    inner = found["supervised"][0]
    assert 0 < inner < 0.5
    assert found["supervised"] == pytest.approx([inner] * 6)
    assert found["align-kd"] == pytest.approx([1.0] * 6)
    assert found["middle"] == pytest.approx([(1 + inner) / 2] * 6)
    # every number is printed, in the colour of its polygon
    colours = {str(line.get_label()): line.get_color() for line in axes.lines}
    assert len(set(colours.values())) == 3
    printed = [(text.get_text(), text.get_color()) for text in axes.texts if isinstance(text, Annotation)]
    for name, row in ROWS.items():
        for benchmark, value in row.items():
            assert (f"{value:.1f}" if benchmark == "mme" else f"{value:.2f}", colours[name]) in printed
    assert {"GQA", "ScienceQA-IMG", "TextVQA", "MME", "MMBench dev", "POPE"} <= {text for text, _ in printed}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(ROWS)


def test_a_missing_number_is_a_gap(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    without = {name: value for name, value in ROWS["middle"].items() if name != "textvqa"}
    figure = figure_of([
        write_evaluation(tmp_path / "whole", ROWS["supervised"]), write_evaluation(tmp_path / "gap", without)
    ])  # fmt: skip
    found = polygons(figure)
    assert [math.isnan(value) for value in found["gap"]] == [False, False, True, False, False, False]
    assert not any(map(math.isnan, found["whole"]))
    assert len(figure.axes[0].patches) == 1  # only the whole polygon is filled
    assert "-" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("names", [["gqa"], ["gqa", "mme"]])
def test_fewer_than_three_benchmarks_are_bars(
    names: list[str], write_evaluation: WriteEvaluation, tmp_path: Path
) -> None:
    rows = {model: {name: row[name] for name in names} for model, row in ROWS.items()}
    figure = figure_of([write_evaluation(tmp_path / model, row) for model, row in rows.items()])
    assert len(figure.axes) == len(names) and not any(isinstance(axes, PolarAxes) for axes in figure.axes)
    for axes, name in zip(figure.axes, names, strict=True):
        assert [bar.get_height() for bar in axes.patches] == [row[name] for row in rows.values()]  # type: ignore[attr-defined]
        assert [text.get_text() for text in axes.texts] == [
            f"{row[name]:.1f}" if name == "mme" else f"{row[name]:.2f}" for row in rows.values()
        ]
        assert axes.get_ylim()[0] == 0


def test_what_may_not_be_compared_is_not_drawn_but_named(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    figure = figure_of([
        write_evaluation(tmp_path / "first", ROWS["supervised"]),
        write_evaluation(tmp_path / "other-dtype", ROWS["align-kd"], dtype="bfloat16"),
        write_evaluation(tmp_path / "ten", {"gqa": 99.0}, limit=10, questions=10),
        write_evaluation(tmp_path / "same", ROWS["middle"]),
    ])  # fmt: skip
    assert list(polygons(figure)) == ["first", "same"]
    assert figure.get_suptitle().splitlines()[1].endswith("without numbers: other-dtype, ten")


def test_nothing_is_drawn_without_a_whole_benchmark(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    comparison = make_report([write_evaluation(tmp_path / "a", {"gqa": 5.0}, limit=3)]).comparison
    assert comparison is not None and not can_be_drawn(comparison)


def test_the_file_is_a_picture(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    comparison = make_report([write_evaluation(tmp_path / name, row) for name, row in ROWS.items()]).comparison
    assert comparison is not None
    draw_scores(comparison, tmp_path / "scores.png")
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.info["Software"] == "alignkd report"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):
        assert (abs(pixels - np.array(colour)).sum(-1) < 30).sum() > 100


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=5))
def test_radii_keep_the_order_and_lie_on_the_disk(values: list[float]) -> None:
    span = axis_range(values)
    radii = [radius(value, span) for value in values]
    assert all(0.3 <= one <= 1 + 1e-9 for one in radii)
    assert sorted(values) == [value for _, value in sorted(zip(radii, values, strict=True))]
    if max(values) - min(values) > 0.02 * max(max(values), 1.0):
        assert max(radii) == pytest.approx(1.0) and min(radii) == pytest.approx(0.35)
    else:
        # a difference that means nothing does not fill the axis
        assert max(radii) - min(radii) <= 0.65 * (max(values) - min(values)) / (0.02 * max(max(values), 1.0)) + 1e-6
