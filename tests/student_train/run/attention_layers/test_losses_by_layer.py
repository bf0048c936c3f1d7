"""`attention_0`, `attention_1`, ...: the attention loss by the student's layers, in the metrics of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.student_train.job import TrainJob
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
GROUPED = {"vision_all": 0.0, "vision_top": 0.0, "logit": 0.0, "attention": 1000.0, "attention_heads": "grouped"}
TWO_LAYERS = {**GROUPED, "attention_layers": {0: 0, 1: (0, 1)}}
FORMS = ["mse", "kl", "cosine", "row_cosine", "filtered_cosine"]


@pytest.fixture
def lines_of(make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """lines_of(name, store, losses, ...): the metrics of a short run."""

    def run(name: str, store: Any, losses: Any, **settings: Any) -> list[dict[str, Any]]:
        settings = {"steps": 2, "micro_batch": 5, "global_batch": 10} | settings
        train(make_job(store, output=tmp_path / name, losses=losses, **settings))
        return read_metrics(tmp_path / name)

    return run


@pytest.mark.parametrize("form", FORMS)
def test_each_layer_is_that_of_a_run_that_compares_it_alone(
    form: str, layers_store: Path, lines_of: Callable[..., list[dict[str, Any]]]
) -> None:
    """Before the first update; the mean of the layers is the loss at every step."""
    losses = TWO_LAYERS | {"attention_form": form}
    both = lines_of("both", layers_store, losses)
    for line in both:
        assert line["attention"] == pytest.approx((line["attention_0"] + line["attention_1"]) / 2, rel=1e-6)
    alone = [
        lines_of(f"{n}", layers_store, losses | {"attention_layers": {n: TWO_LAYERS["attention_layers"][n]}}, steps=1)[
            0
        ]
        for n in (0, 1)
    ]
    for layer, line in enumerate(alone):
        assert both[0][f"attention_{layer}"] == pytest.approx(line["attention"], rel=1e-6)
        assert both[0].keys() - line.keys() == {"attention_0", "attention_1"} and line.keys() <= both[0].keys()
    assert alone[0]["attention"] != pytest.approx(alone[1]["attention"], rel=1e-3)


def test_the_first_layer_has_no_further_figure(many_store: Path, lines_of: Callable[..., list[dict[str, Any]]]) -> None:
    (line,) = lines_of("first", many_store, {}, steps=1)
    assert [name for name in line if name.startswith("attention")] == ["attention"]


def test_a_step_without_an_image_has_null(
    layers_store: Path,
    lines_of: Callable[..., list[dict[str, Any]]],
    tensorboard_equals_metrics: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    """Five steps of one sample each, with row weights; TensorBoard has the same figures."""
    losses = TWO_LAYERS | {"attention_row_weights": "sharpness"}
    lines = lines_of("single", layers_store, losses, steps=5, micro_batch=1, global_batch=1)
    without = [line for line in lines if line["attention"] is None]
    assert 0 < len(without) < len(lines)
    assert all(line["attention_0"] is None and line["attention_1"] is None for line in without)
    tensorboard_equals_metrics(tmp_path / "single")


def test_figures_of_sources_stay_apart_from_those_of_layers(
    layers_store: Path,
    dump_layers: Any,
    many_samples: Any,
    lines_of: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    """Both travel in one exchange. Two stores of the same samples have the figures of one."""
    halves = (dump_layers(tmp_path / "six", many_samples[:6]), dump_layers(tmp_path / "four", many_samples[6:]))
    one = lines_of("one", layers_store, TWO_LAYERS)
    two = lines_of("two", tuple(TrainStore(path=path, weight=1.0) for path in halves), TWO_LAYERS)
    for line, expected in zip(two, one, strict=True):
        by_source = line.pop("by_source")
        assert line == pytest.approx(expected, rel=1e-4)
        assert {name: figures["samples"] for name, figures in by_source.items()} == {"six": 6, "four": 4}
        assert all(figures.keys() == {"samples", "loss", "supervised", "attention"} for figures in by_source.values())
        low, high = sorted(figures["attention"] for figures in by_source.values())
        assert low < line["attention"] < high
