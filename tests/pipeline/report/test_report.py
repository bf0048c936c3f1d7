"""`alignkd report` on metrics written here, whose figures are known."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alignkd.pipeline.report.load import load_runs, losses_of, moved_figures_of, running_mean
from alignkd.pipeline.report.picture import draw_curves
from alignkd.pipeline.report.table import plain_table
from alignkd.storage.schema.sealed_json import seal
from alignkd.vlm.errors import InputError

Alignkd = Callable[..., Any]


def write_run(folder: Path, losses: list[float | None], *, finished: bool = True, **columns: list[Any]) -> Path:
    """A run whose loss at each step is given; None is a skipped step."""
    folder.mkdir(parents=True)
    lines = [
        {
            "step": step,
            "loss": loss,
            "supervised": loss,
            "samples_seen": 4 * step,
            "skipped": loss is None,
            "seconds": 0.5 * step,
            "wait_share": 0.01,
            "tokens_per_second": 1000.0,
            "padding": 1.0 + step / 8,
            "peak_memory_mib": 100.0 + step,
            "samples_one_image": 3,
            "samples_text_only": 1,
            **{name: values[step - 1] for name, values in columns.items()},
        }
        for step, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "finished.json").write_bytes(seal({"step": len(losses)}))
    return folder


def test_figures_of_a_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [4.0, None, 2.0, 1.0], attention=[0.5, 0.4, None, 0.2])
    (run,) = load_runs([folder], smooth=2)
    assert (run.name, run.state, run.steps, run.samples_seen, run.skipped) == ("run", "finished", 4, 16, 1)
    assert run.samples_by_kind == {"one_image": 12, "text_only": 4}
    assert run.curves["loss"] == [(1, 4.0), (3, 3.0), (4, 1.5)]  # a skipped step has no loss
    assert run.final == pytest.approx({"loss": 1.5, "supervised": 1.5, "attention": 0.3})
    assert (run.seconds_per_step, run.tokens_per_second, run.padding) == (1.25, 1000.0, 1.3125)
    assert (run.wait_share, run.peak_memory_mib) == (0.01, 104.0)
    assert re.search(r"padded / real positions +1\.312", plain_table([run]))


def test_half_a_line_of_a_running_run_is_left_alone(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [3.0, 2.0], finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.')
    (run,) = load_runs([folder / "metrics.jsonl"], smooth=1)
    assert (run.state, run.steps) == ("unfinished", 2)


def test_runs_are_named_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "out", [1.0]) for name in ("supervised", "align-kd")]
    assert [run.name for run in load_runs(folders, smooth=1)] == ["supervised/out", "align-kd/out"]
    with pytest.raises(InputError, match="given twice"):
        load_runs([folders[0], folders[0] / "metrics.jsonl"], smooth=1)


@pytest.mark.parametrize("content", [None, "", '{"step": 1}\n', "[]\n", "no json}\n"])
def test_what_is_no_run_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl: ") as error:
        load_runs([tmp_path], smooth=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "figures",
    [
        '"loss": 1, "samples_seen": null',
        '"loss": 1, "samples_text": 0.5',
        '"loss": 1, "by_source": [1]',
        '"loss": 1, "by_source": {"a": 1}',
        '"loss": 1, "by_source": {"a": {"loss": 1}}',
        f'"loss": {"[" * 100_000}',
    ],
)
def test_figures_that_no_run_wrote_are_one_line(figures: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "samples_seen": 4, ' + figures + "}\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: is not the metrics file .* \(line 1: ") as error:
        load_runs([tmp_path], smooth=1)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe}\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl: is not the metrics file"):
        load_runs([tmp_path], smooth=1)


def test_gaps_in_the_figures_are_left_out(tmp_path: Path) -> None:
    """NaN of another writer, what is no number, a source without samples, a step without sources."""
    lines = [
        '{"step": 1, "samples_seen": 4, "loss": NaN, "peak_memory_mib": null, "by_source": {"a": {"samples": 0, '
        '"loss": 1}}}',
        '{"step": 2, "samples_seen": 8, "loss": 3, "grad_norm": -Infinity, "seconds": "<script>"}',
        '{"step": 3, "samples_seen": 9, "loss": 1e308, "grad_norm": [1]}',
        '{"step": 4, "samples_seen": 9, "loss": 1' + "0" * 400 + "}",
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run,) = load_runs([tmp_path], smooth=1)
    assert run.curves == {"loss": [(2, 3)]} and run.figures == {} and run.peak_memory_mib is None
    assert run.by_source == {"a": {"samples": 0}}


@pytest.mark.parametrize(
    ("steps", "named"), [([1, 2, 2, 3], "line 3 has step 2 after step 2"), ([1, 2, 3, 1], "line 4 has")]
)
def test_what_two_runs_wrote_at_once_is_refused(steps: list[int], named: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [1.0] * len(steps), step=steps)
    with pytest.raises(InputError, match=rf"metrics\.jsonl: {named}.*train again into another output") as error:
        load_runs([tmp_path / "run"], smooth=1)
    assert "\n" not in str(error.value)


def test_table_has_a_column_per_run_and_a_dash_for_what_a_run_lacks(tmp_path: Path) -> None:
    supervised = write_run(tmp_path / "a", [2.0, 1.0])
    distilled = write_run(tmp_path / "b", [2.5, 1.5], attention=[0.3, 0.1])
    lines = plain_table(load_runs([supervised, distilled], smooth=1)).splitlines()
    cells = {line[:22].strip(): line[22:].split() for line in lines}
    assert cells[""] == ["a", "b"]
    assert cells["loss (weighted sum)"] == ["1", "1.5"]
    assert cells["attention"] == ["-", "0.1"]
    assert cells["waiting for data"] == ["1.0%", "1.0%"]
    assert "logit" not in cells


def test_the_command_writes_page_and_picture(alignkd_here: Alignkd, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [3.0, 2.0, 1.0 + number]) for number, name in enumerate("xy")]
    done = alignkd_here("report", *runs, "--out", tmp_path / "page", "--smooth", 1)
    assert done.returncode == 0, done.stderr
    assert "loss (weighted sum)" in done.stdout
    page = (tmp_path / "page" / "report.md").read_text()
    assert "|  | x | y |" in page and "| loss (weighted sum) | 1 | 2 |" in page and "curves.png" in page
    with Image.open(tmp_path / "page" / "curves.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20  # something is drawn
    found = json.loads(alignkd_here("report", *runs, "--json").stdout)
    assert [run["final"]["loss"] for run in found] == [1.0 + n for n in range(2)]
    found = json.loads(alignkd_here("report", *runs, "--smooth", 50, "--json").stdout)
    assert [run["final"]["loss"] for run in found] == [running_mean([3.0, 2.0, 1.0 + n], 50)[-1] for n in range(2)]


@pytest.mark.parametrize(("steps", "window"), [(3, 1), (19, 1), (20, 2), (499, 49), (500, 50), (501, 50), (9000, 50)])
def test_a_loss_is_the_mean_of_the_last_tenth_at_most_50_steps(steps: int, window: int, tmp_path: Path) -> None:
    losses = [float(step % 7) for step in range(steps)]
    (run,) = load_runs([write_run(tmp_path / "run", list(losses))])
    assert (run.window, run.final["loss"]) == (window, pytest.approx(np.mean(losses[-window:])))
    (label,) = [
        line.split("  ")[-1].strip() for line in plain_table([run]).splitlines() if line.startswith("losses are")
    ]
    assert label == ("1 step" if window == 1 else f"{window} steps")


def test_losses_are_those_of_the_metrics_files(tmp_path: Path) -> None:
    """Also one that this version does not know: a run of another version, or of a branch with a loss of its own."""
    runs = load_runs(
        [
            write_run(
                tmp_path / "a", [2.0, 1.0], attention_0=[0.4, 0.2], attention_1=[0.8, 0.6], attention_weight=[1, 1]
            ),
            write_run(
                tmp_path / "b", [2.0, 1.0], unheard_of=[5.0, 3.0], learning_rate=[1.0, 1.0], grad_norm=[2.0, 2.0]
            ),
        ],
        smooth=1,
    )
    assert losses_of(runs) == ["loss", "supervised", "attention_0", "attention_1", "unheard_of"]
    rows = {line[:13].strip(): line.split()[-2:] for line in plain_table(runs).splitlines()}
    assert (rows["unheard of"], rows["attention 1"]) == (["-", "3"], ["0.6", "-"])


def test_what_an_objective_moves_is_shown_as_it_is(tmp_path: Path) -> None:
    """The last value in the table, and a plot of its own; no mean, and no loss."""
    moving = write_run(tmp_path / "a", [3.0, 2.0, 1.0], taid_t=[0.4, 0.6, 0.9], taid_cross_entropy=[3.0, 2.0, 1.0])
    runs = load_runs([moving, write_run(tmp_path / "b", [2.0, 1.0])], smooth=3)
    assert losses_of(runs) == ["loss", "supervised"] and moved_figures_of(runs) == ["taid_t"]
    assert runs[0].moved == {"taid_t": [(1, 0.4), (2, 0.6), (3, 0.9)]} and runs[1].moved == {}
    (row,) = [line.split() for line in plain_table(runs).splitlines() if line.startswith("taid t in the last step")]
    assert row[-2:] == ["0.9", "-"]
    drawn = []
    for shown in (runs, [replace(run, moved={}) for run in runs]):
        draw_curves(shown, tmp_path / "curves.png")
        drawn.append((tmp_path / "curves.png").read_bytes())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("steps", [1, 2, 200])
def test_a_run_of_any_length_is_seen_in_the_picture(steps: int, tmp_path: Path) -> None:
    """A line through a single point draws nothing."""
    (run,) = load_runs([write_run(tmp_path / "run", [1.0] * steps)], smooth=1)
    picture = tmp_path / "curves.png"
    draw_curves([replace(run, curves={"loss": run.curves["loss"]})], picture)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    first_colour = np.array([31, 119, 180])  # of matplotlib's cycle
    assert (abs(pixels - first_colour).sum(-1) < 30).sum() > 20


def write_validation(folder: Path, values: dict[int, float | None], best_step: int | None) -> None:
    """The losses of validations by step; the last line is half written."""
    lines = [
        {
            "step": step,
            "loss": value,
            "supervised": value,
            "samples": 4,
            "seconds": 1.0,
            "best_step": best_step if step else None,
            "best": 1.0,
        }
        for step, value in values.items()
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "lo'
    (folder / "validation.jsonl").write_text(content)


def test_validation_is_in_table_json_and_picture(alignkd_here: Alignkd, tmp_path: Path) -> None:
    validated = write_run(tmp_path / "a", [2.0, 1.8, 1.5, 1.0])
    write_validation(validated, {0: 3.0, 2: 1.25, 4: 2.5}, best_step=2)
    plain = write_run(tmp_path / "b", [2.0, 1.0, 1.0, 1.0])
    done = alignkd_here("report", validated, plain, "--out", tmp_path / "page", "--json", "--smooth", 1)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["best_step"] for run in found] == [2, None]
    assert found[0]["validation"]["loss"] == [[0, 3.0], [2, 1.25], [4, 2.5]] and found[1]["validation"] == {}
    page = (tmp_path / "page" / "report.md").read_text()
    assert "| best validation at step | 2 | - |" in page and "| validation loss (weighted sum) | 1.25 | - |" in page
    assert "dashed" in page
    runs = load_runs([validated], smooth=1)
    pictures = [tmp_path / name for name in ("with.png", "without.png")]
    draw_curves(runs, pictures[0])
    draw_curves([replace(runs[0], validation={}, best_step=None)], pictures[1])
    drawn = []
    for picture in pictures:
        with Image.open(picture) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        drawn.append((abs(pixels - np.array([31, 119, 180])).sum(-1) < 30).sum())
    assert drawn[0] > drawn[1] + 100  # the dashes and the star are of the run's colour
    assert "validation" not in plain_table(load_runs([plain], smooth=1))


def test_a_validation_that_was_not_finite_has_no_point(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [1.0, 1.0])
    write_validation(folder, {0: 3.0, 1: None, 2: None}, best_step=None)
    (run,) = load_runs([folder], smooth=1)
    assert (run.validation["loss"], run.best_step) == ([(0, 3.0)], None)
    assert "validation loss (weighted sum)" in plain_table([run])


@pytest.mark.parametrize("content", ["[]}\n", '{"step": 1}\n', "no json}\n"])
def test_what_is_no_validation_is_one_line(content: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [1.0])
    (folder / "validation.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"validation\.jsonl: is not the validation file") as error:
        load_runs([folder])
    assert "\n" not in str(error.value)


@given(st.lists(st.floats(-1e3, 1e3), max_size=30), st.integers(1, 40))
def test_running_mean_is_that_of_the_window(values: list[float], window: int) -> None:
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    assert running_mean(values, window) == pytest.approx(expected, abs=1e-9)
