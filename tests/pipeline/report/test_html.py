"""The page of `alignkd report --html`: its numbers are those of `--json`, its text is text, it loads nothing."""

import html
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from report_pages import data_of, write_run

from alignkd.pipeline.report.follow import follow_runs, write_page
from alignkd.pipeline.report.html.charts import charts_of, thinned
from alignkd.pipeline.report.html.markup import element
from alignkd.pipeline.report.html.settings import configurations, differing, seeds_of
from alignkd.pipeline.report.html.svg import ticks
from alignkd.pipeline.report.load import load_runs
from alignkd.pipeline.report.report import is_html_page, make_report
from alignkd.pipeline.report.scores.evaluation import Column, Number
from alignkd.pipeline.report.scores.interval import interval_of

Alignkd = Callable[..., Any]
WriteEvaluation = Callable[..., Path]


def cells_of(page: str) -> list[list[str]]:
    """The cells of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_its_numbers_are_those_of_json(
    alignkd_here: Alignkd, write_evaluation: WriteEvaluation, tmp_path: Path
) -> None:
    runs = [
        write_run(tmp_path / "a", 2000, validated=True, learning_rate=1e-4),
        write_run(tmp_path / "b", 30, finished=False, learning_rate=2e-4),
    ]
    write_evaluation(tmp_path / "a" / "eval" / "student", {"gqa": 60.0, "mme": 1300.0}, questions=1000)
    done = alignkd_here("report", *runs, "--json", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    page = (tmp_path / "page.html").read_text()

    data = data_of(page)
    assert data["runs"] == [run["name"] for run in found] == ["a", "b"]
    drawn = {(line["run"], line["validation"], number) for number, c in enumerate(data["charts"]) for line in c}
    assert len(drawn) == 2 * 6 + 1  # losses, learning rate and speed of both, the validation of one
    for lines, names in zip(
        data["charts"],
        ["loss", "supervised", "attention", "learning_rate", "seconds", "tokens_per_second"],
        strict=True,
    ):
        for line in lines:
            run = found[line["run"]]
            whole = run["validation" if line["validation"] else "curves"].get(names) or run["figures"][names]
            assert [point for point in whole if point in line["points"]] == line["points"]
            assert (line["points"][0], line["points"][-1]) == (whole[0], whole[-1])
    cells = {row[0]: row[1:] for row in cells_of(page)}
    assert cells["loss (weighted sum)"] == [f"{run['final']['loss']:.4g}" for run in found]
    assert cells["validation loss (weighted sum)"] == [f"{4.0 / 2000:.4g}", "-"]
    assert cells["seconds per step"] == [f"{run['seconds_per_step']:.3g}" for run in found]
    assert cells["train.learning_rate"] == ["0.0001", "0.0002"]
    assert cells["a"] == ["60.00 [56.93, 62.99]", "1300.0"]
    assert "unfinished: b" in page


def test_text_of_a_stranger_is_text(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    closing = "</script><script>alert(1)</script>"
    run = write_run(tmp_path / bad, 3, preset=closing, losses={bad: closing})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": 1.0, "samples_seen": 16, closing: 2.0}) + "\n")
    page = make_report([run, write_run(tmp_path / "tame", 3)]).html()
    assert bad not in page and closing not in page and html.escape(bad) in page and html.escape(closing) in page
    assert page.count("<script") == 2 and data_of(page)["runs"][0] == bad
    with pytest.raises(ValueError, match="is no name"):
        element("b onclick=alert(1)", "")


def test_files_that_hold_anything_are_no_error(tmp_path: Path) -> None:
    """Numbers that are none, texts in their place, a name that is no text, a pipe where a picture might be."""
    run = write_run(tmp_path / "odd\udc80", 3, learning_rate=[{"deep": [None, {"x": 1}]}])
    with (run / "metrics.jsonl").open("a") as file:
        line = {"step": 4, "loss": None, "samples_seen": 16, "learning_rate": "fast", "grad_norm": math.nan}
        file.write(json.dumps(line | {"tokens_per_second": math.inf, "seconds": 10**400}) + "\n")
    os.mkfifo(run / "pipe.png")
    report = make_report([run])
    charts = {chart.name: chart for chart in charts_of(report.runs)}
    assert [step for step, _ in charts["learning_rate"].lines[0].points] == [1, 2, 3]
    assert "grad_norm" not in charts and "odd?" in report.html()


def test_it_refers_to_nothing_outside(tmp_path: Path) -> None:
    page = make_report([write_run(tmp_path / "a", 3), write_run(tmp_path / "b", 3)]).html()
    assert "http:" not in page and "https:" not in page and "@import" not in page and "url(" not in page
    assert not re.search(r"\s(?:href|src|srcset|style|on\w+)=", page)
    assert "default-src &#x27;none&#x27;" in page


def test_pictures_of_attention_are_in_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 3)
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", "alignkd shards show")
    Image.new("RGB", (4, 4)).save(run / "attention.png", pnginfo=about)
    Image.new("RGB", (4, 4)).save(run / "other.png")
    page = make_report([run]).html()
    assert page.count("data:image/png;base64,") == 1 and "attention.png" in page and "other.png" not in page


def test_seeds_are_runs_that_differ_in_nothing_else(tmp_path: Path) -> None:
    settings = [{"seed": 0}, {"seed": 1}, {"seed": 0, "learning_rate": 1.0}, {"seed": 1, "token_budget": None}]
    folders = [write_run(tmp_path / str(n), 10 * (n + 1), **one) for n, one in enumerate(settings)]
    runs = load_runs(folders, smooth=1)
    found = configurations(runs)
    (group,) = seeds_of(runs, found)
    assert [run.name for run in group.runs] == ["0", "1", "3"]
    assert group.losses["loss"][0] == pytest.approx((0.3 + 0.15 + 0.075) / 3)
    assert differing(found) == {"train.seed": ["0", "1", "0", "1"], "train.learning_rate": ["-", "-", "1.0", "-"]}


def test_thinned_keeps_ends_and_extremes() -> None:
    points = [(step, float(step % 7)) for step in range(10_000)]
    points[5003] = (5003, 99.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100 and kept == sorted(kept) and set(kept) <= set(points)
    assert {points[0], points[-1], points[5003]} <= set(kept)
    assert thinned(points[:50], 100) == points[:50]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 700.0), (-1e-9, 3e-9), (999.0, 1000.0), (1, 2)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_interval_of_a_score() -> None:
    """81 of 263: 25.5 to 36.6 per cent (Newcombe, Statistics in Medicine 17, 1998, table I, method 3)."""
    number = Number(value=100 * 81 / 263, why_not=None, questions=263, sha256=None, unreadable=0)
    found = interval_of(Column("gqa", None), number)
    assert found == pytest.approx((25.53, 36.62), abs=0.01)
    assert interval_of(Column("pope", None), number) is None
    assert interval_of(Column("pope", 100), number) is not None


def test_a_page_is_written_again_until_all_runs_are_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, file = write_run(tmp_path / "a", 3, finished=False), tmp_path / "page.html"
    write_page(file, make_report([run]), every=5.0)
    assert 'http-equiv="refresh" content="5"' in file.read_text()
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) in (1, 2):  # a run that is started again
            (run / "metrics.jsonl").write_text("")
        else:
            (tmp_path / "b").exists() or write_run(tmp_path / "b", 5)
            for name in ("metrics.jsonl", "finished.json"):
                (run / name).write_bytes((tmp_path / "b" / name).read_bytes())

    monkeypatch.setattr("alignkd.pipeline.report.follow.time.sleep", pause)
    follow_runs(file, lambda: make_report([run]), every=5.0)
    assert pauses == [5.0] * 3 and caplog.text.count("the page stays as it is") == 1
    assert "refresh" not in file.read_text() and "unfinished" not in file.read_text()


def test_the_command_replaces_only_its_own_pages(alignkd_here: Alignkd, tmp_path: Path) -> None:
    run, page = write_run(tmp_path / "a", 3), tmp_path / "page.html"
    assert [alignkd_here("report", run, "--html", page).returncode for _ in range(2)] == [0, 0]
    assert is_html_page(page)
    page.write_text("<!doctype html>\nmine")
    done = alignkd_here("report", run, "--html", page)
    assert done.returncode == 1 and "already exists" in done.stderr
    assert alignkd_here("report", run, "--every", 5).returncode == 2
