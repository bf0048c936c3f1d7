"""The picture of the scores: what is drawn where, not its pixels."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.projections.polar import PolarAxes
from matplotlib.text import Text
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
    # every number is printed beside the marker of its polygon
    styles = {str(line.get_label()): style_of(line) for line in axes.lines}
    assert len(set(styles.values())) == 3
    printed = printed_numbers(axes)
    assert list(printed) == ["GQA, %", "ScienceQA-IMG, %", "TextVQA, %", "MME, points of 2000", "MMBench dev, %",
                             "POPE, %"]  # fmt: skip
    for (title, lines), benchmark in zip(printed.items(), ROWS["middle"], strict=True):
        digits = 1 if title.startswith("MME,") else 2
        assert lines == {styles[name]: f"{row[benchmark]:.{digits}f}" for name, row in ROWS.items()}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(ROWS)
    assert figure.get_suptitle() == "Benchmark scores"


def style_of(line: Line2D) -> tuple[object, ...]:
    return line.get_color(), line.get_marker()


def printed_numbers(axes: Axes) -> dict[str, dict[tuple[object, ...], str]]:
    """Title of an axis -> what is printed beside each marker."""
    found = {}
    for block in axes.artists:
        assert isinstance(block, AnnotationBbox)
        title, *numbers = [text.get_text().strip() for text in block.findobj(Text)]
        markers = [style_of(line) for line in block.findobj(Line2D)]  # type: ignore[arg-type]
        found[title] = dict(zip(markers, numbers, strict=True))
    return found


def test_many_models_with_long_names_differ_and_fit(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    names = [f"qwen3-vl-2b-attention-of-layers-0-and-1-of-all-heads-seed-{number}" for number in range(20)]
    folders = [write_evaluation(tmp_path / name, ROWS["middle"] | {"gqa": 50.0 + n}) for n, name in enumerate(names)]
    figure = figure_of([*folders, write_evaluation(tmp_path / ("long" * 40), ROWS["middle"])])
    figure.canvas.draw()
    (axes,), (legend,) = figure.axes, figure.legends
    assert len({style_of(line) for line in axes.lines}) == 21
    width, height = figure.canvas.get_width_height()
    for artist in (legend, *axes.artists):
        box = artist.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        if artist is not legend:
            assert box.y0 >= legend.get_window_extent().y1
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown[:-1] == names and shown[-1] == "..." + "long" * 20


def test_the_picture_states_what_its_lengths_mean(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    def remarks(**second: float) -> list[str]:
        rows = [ROWS["supervised"], ROWS["align-kd"] | second]
        figure = figure_of([write_evaluation(tmp_path / f"{n}-{second}", row) for n, row in enumerate(rows)])
        return figure.legends[0].get_title().get_text().splitlines()

    assert len(remarks()) == 1 and "own range" in remarks(pope=90.5)[0]
    assert remarks(gqa=56.1, mme=1201.0)[1] == "A range is at least 2% of the largest number, here of GQA, MME."


def test_a_missing_number_is_a_gap(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    without = {name: value for name, value in ROWS["middle"].items() if name != "textvqa"}
    figure = figure_of([
        write_evaluation(tmp_path / "whole", ROWS["supervised"]), write_evaluation(tmp_path / "gap", without)
    ])  # fmt: skip
    found = polygons(figure)
    assert [math.isnan(value) for value in found["gap"]] == [False, False, True, False, False, False]
    assert not any(map(math.isnan, found["whole"]))
    assert len(figure.axes[0].patches) == 1  # only the whole polygon is filled
    assert list(printed_numbers(figure.axes[0])["TextVQA, %"].values()) == ["40.00", "-"]


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
        assert (axes.get_title(), axes.get_ylabel()) == (("GQA", "%") if name == "gqa" else ("MME", "points of 2000"))


def test_what_may_not_be_compared_is_not_drawn_but_named(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    figure = figure_of([
        write_evaluation(tmp_path / "first", ROWS["supervised"]),
        write_evaluation(tmp_path / "other-dtype", ROWS["align-kd"], dtype="bfloat16"),
        write_evaluation(tmp_path / "ten", {"gqa": 99.0}, limit=10, questions=10),
        write_evaluation(tmp_path / "same", ROWS["middle"]),
    ])  # fmt: skip
    assert list(polygons(figure)) == ["first", "same"]
    remarks = figure.legends[0].get_title().get_text().splitlines()
    assert remarks[-1].endswith("without numbers: other-dtype, ten.")


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
