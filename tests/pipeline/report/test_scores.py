"""`alignkd report` on evaluations whose numbers are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.pipeline.report.report import Report, make_report
from alignkd.pipeline.report.scores.evaluation import Column
from alignkd.vlm.errors import InputError

Alignkd = Callable[..., Any]
WriteEvaluation = Callable[..., Path]
SUPERVISED = {"gqa": 56.1, "sqa": 54.7, "textvqa": 41.5, "mme": 1196.2, "mmbench": 53.2, "pope": 84.5}
DISTILLED = {"gqa": 57.7, "sqa": 58.0, "textvqa": 45.1, "mme": 1303.8, "mmbench": 57.5, "pope": 85.6}


@pytest.fixture
def write_run(write_evaluation: WriteEvaluation, tmp_path: Path) -> Callable[..., Path]:
    """write_run("align-kd", student={...}, baseline={...}): a training run with the scores of its models."""

    def write(name: str, *, weights: dict[str, str] | None = None, **models: dict[str, float]) -> Path:
        output = tmp_path / name
        output.mkdir()
        (output / "metrics.jsonl").write_text('{"step": 1, "samples_seen": 4, "loss": 2.0}\n')
        for model, row in models.items():
            write_evaluation(output / "eval" / model, row, weights=(weights or {}).get(model, f"{name} {model}"))
        return output

    return write


def cells(report: Report) -> dict[str, list[str]]:
    """Name -> its cells in the table of scores."""
    lines = report.plain().split("\n\n")[-1].splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def notes(report: Report) -> list[str]:
    """The lines below the table of scores."""
    lines = report.plain().split("\n\n")[-1].splitlines()
    assert report.comparison is not None
    return lines[1 + len(report.comparison.rows) :]


def test_scores_stand_beside_the_baseline_with_the_papers_average(write_run: Callable[..., Path]) -> None:
    run = write_run("align-kd", student=DISTILLED, baseline=SUPERVISED, teacher={"gqa": 62.6})
    report = make_report([run])
    found = cells(report)
    assert found["model"] == [*(one.title for one in BENCHMARKS.values()), "average"]
    assert found["baseline"] == ["56.10", "54.70", "41.50", "1196.2", "53.20", "84.50", "58.30"]
    # (57.7 + 58.0 + 45.1 + 1303.8 / 20 + 57.5 + 85.6) / 6 - 58.30
    assert found["align-kd"][3:] == ["1303.8 (+107.6)", "57.50 (+4.30)", "85.60 (+1.10)", "61.52 (+3.21)"]
    assert found["teacher"] == ["62.60 (+6.50)", *["-"] * 6]
    assert notes(report) == ["in parentheses: difference to baseline"]
    (values, baseline, teacher) = report.to_json()
    assert [values["name"], baseline["name"], teacher["name"]] == ["align-kd", "baseline", "teacher"]
    scores = {score["benchmark"]: score for score in values["evaluation"]["scores"]}
    assert {name: score["value"] for name, score in scores.items()} == DISTILLED
    for name, score in scores.items():
        assert score["to_baseline"] == pytest.approx(DISTILLED[name] - SUPERVISED[name])
    average = sum(DISTILLED[name] / (20 if name == "mme" else 1) for name in DISTILLED) / 6
    assert values["evaluation"]["average"] == pytest.approx(average)
    assert values["final"]["loss"] == 2.0


def test_runs_without_scores_are_reported_as_before(write_run: Callable[..., Path]) -> None:
    report = make_report([write_run("plain")])
    assert report.comparison is None and "\n\n" not in report.plain()
    assert [values["evaluation"] for values in report.to_json()] == [None]


def test_the_baseline_of_one_run_may_be_another_run(write_run: Callable[..., Path]) -> None:
    supervised = write_run("supervised", student=SUPERVISED)
    same = {"baseline": "supervised student"}
    runs = [
        supervised,
        write_run("align-kd", student=DISTILLED, baseline=SUPERVISED, weights=same),
        write_run("other", student={"gqa": 50.0}, baseline=SUPERVISED, weights=same),
    ]
    found = cells(make_report(runs))
    assert list(found) == ["model", "supervised", "align-kd", "other"]
    assert (found["align-kd"][0], found["other"][0]) == ("57.70 (+1.60)", "50.00 (-6.10)")


def test_a_baseline_is_found_however_its_path_is_written(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = write_run("one", student={"gqa": 60.0}), write_run("two", student={"gqa": 70.0})
    for baseline in (one, Path("one"), one / "metrics.jsonl", two / ".." / "one"):
        found = cells(make_report([one, two], baseline=baseline))
        assert (found["one"], found["two"]) == (["60.00"], ["70.00 (+10.00)"])
    # one that is not among the runs comes first
    assert list(cells(make_report([two], baseline=Path("one")))) == ["model", "one", "two"]


def test_several_baselines_are_not_mixed(write_run: Callable[..., Path]) -> None:
    runs = [
        write_run("one", student={"gqa": 60.0}, baseline={"gqa": 50.0}),
        write_run("two", student={"gqa": 70.0}, baseline={"gqa": 55.0}),
    ]
    report = make_report(runs)
    assert cells(report)["one"] == ["60.00"]
    (note,) = notes(report)
    assert "several baselines (baseline of one, baseline of two)" in note and "--baseline" in note
    chosen = make_report(runs, baseline=runs[0] / "eval" / "baseline")
    # that folder is listed itself, and is the same evaluation as the baseline of the run
    assert cells(chosen)["two"] == ["70.00 (+20.00)"]
    assert cells(make_report(runs, baseline=runs[0]))["two"] == ["70.00 (+10.00)"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "bfloat16"}, "dtype bfloat16, not float16"),
        ({"template": "v1:2"}, "template v1:2, not v1:1"),
        ({"prompts": "chat template", "template": "x"}, "prompts chat template, not original"),
        ({"questions": 99}, "99 questions, not 100"),
        ({"sha256": "b"}, "the questions differ, or their images lie elsewhere (sha256 in questions.json)"),
        ({"dtype": "float32", "questions": 7}, "dtype float32, not float16; 7 questions, not 100"),
    ],
)
def test_numbers_that_were_made_otherwise_are_marked_and_not_compared(
    changes: dict[str, Any], reason: str, write_evaluation: WriteEvaluation, tmp_path: Path
) -> None:
    reference = write_evaluation(tmp_path / "a", SUPERVISED)
    other = write_evaluation(tmp_path / "b", DISTILLED, **changes)
    third = write_evaluation(tmp_path / "c", DISTILLED)
    report = make_report([reference, other, third], baseline=reference)
    found = cells(report)
    assert found["b"][:2] == ["57.70 [1]", "58.00 [1]"] and found["b"][-1] == "61.52 [1]"
    assert found["c"][0] == "57.70 (+1.60)"
    assert f"[1] not comparable with a: {reason}" in notes(report)
    values = report.to_json()[1]["evaluation"]
    assert {score["not_comparable"] for score in values["scores"]} == {reason}
    assert {score["to_baseline"] for score in values["scores"]} == {None}
    # without a baseline, with the first one
    assert f"[1] not comparable with a: {reason}" in notes(make_report([reference, other]))


def test_the_first_questions_have_a_column_of_their_own(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    folders = [
        write_evaluation(tmp_path / "whole", {"gqa": 57.0, "mme": 1300.0}),
        write_evaluation(tmp_path / "ten", {"gqa": 40.0, "mme": 50.0}, limit=10, questions=10, sha256="c"),
        write_evaluation(tmp_path / "also-ten", {"gqa": 30.0}, limit=10, questions=10, sha256="c"),
        write_evaluation(tmp_path / "five", {"gqa": 20.0}, limit=5, questions=5, sha256="d"),
    ]
    found = cells(make_report(folders, baseline=folders[1]))
    assert found["model"] == ["GQA", "GQA, first 5", "GQA, first 10", "MME", "MME, first 10"]
    assert found["whole"] == ["57.00", "-", "-", "1300.0", "-"]
    assert found["also-ten"] == ["-", "-", "30.00 (-10.00)", "-", "-"]
    assert found["ten"][2:] == ["40.00", "-", "50.00"]


def test_what_has_no_score_yet_is_listed(write_evaluation: WriteEvaluation, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "a", {"gqa": 1.0, "pope": None}, notes=["dtype is odd"])
    other = write_evaluation(tmp_path / "b", {"gqa": 2.0, "pope": 3.0}, notes=["dtype is odd", "prompts are odd"])
    report = make_report([folder, other])
    assert cells(report)["a"] == ["1.00", "-"]
    assert notes(report) == [
        "dtype is odd", "b: prompts are odd", "no score: a: POPE: 3 of 100 questions are not asked yet"
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"benchmarks": {"vqa": {}}}', "no json"])
def test_what_is_no_result_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json: not written by `alignkd eval`") as error:
        make_report([tmp_path])
    assert "\n" not in str(error.value)


def test_a_baseline_without_scores_is_refused(write_run: Callable[..., Path]) -> None:
    plain, run = write_run("plain"), write_run("run", student={"gqa": 1.0})
    with pytest.raises(InputError, match=r"--baseline \S+plain: has no scores; evaluate it by `alignkd eval`"):
        make_report([run], baseline=plain)
    with pytest.raises(InputError, match="given twice"):
        make_report([run / "eval" / "student", run / "eval" / "student" / "results.json"])


def test_the_command_takes_folders_of_evaluations(
    alignkd_here: Alignkd, write_evaluation: WriteEvaluation, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run("align-kd", student=DISTILLED, teacher={"gqa": 62.6})
    single = write_evaluation(tmp_path / "eval" / "supervised", SUPERVISED)
    page = tmp_path / "page"
    done = alignkd_here("report", run, single, "--baseline", single, "--out", page)
    assert done.returncode == 0, done.stderr
    assert "57.70 (+1.60)" in done.stdout and done.stdout.endswith(
        f"wrote {page / 'report.md'}, {page / 'curves.png'}, {page / 'scores.png'}\n"
    )
    text = (page / "report.md").read_text()
    assert "| align-kd | 57.70 (+1.60) |" in text and "![Benchmark scores](scores.png)" in text
    assert text.count("|:--|") == 2 and "curves.png" in text
    # the whole folder of an evaluation, without a training
    done = alignkd_here("report", run / "eval", "--out", tmp_path / "other", "--json")
    assert [one["name"] for one in json.loads(done.stdout)] == ["eval", "teacher"]
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["report.md", "scores.png"]
    again = alignkd_here("report", run / "eval", single, "--out", tmp_path / "other")
    assert again.returncode == 0, again.stderr
    nothing = alignkd_here("report", tmp_path / "nothing")
    assert nothing.returncode == 1 and "give the output folder of a training run, or of an evaluation" in nothing.stderr


def test_a_folder_of_single_evaluations_is_listed_whole(
    write_evaluation: WriteEvaluation, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    """As `alignkd eval` leaves them in `eval`, also if one of them has the name of a model of a run."""
    folder = tmp_path / "eval"
    for number, name in enumerate(("align-kd", "supervised", "teacher")):
        write_evaluation(folder / name, {"gqa": 50.0 + number}, weights=name)
    report = make_report([folder])
    assert list(cells(report)) == ["model", "align-kd", "supervised", "teacher"]
    assert report.comparison is not None and not report.comparison.has_baseline
    # one of them may be given itself, too
    found = cells(make_report([folder], baseline=folder / "supervised"))
    assert found == {
        "model": ["GQA"],
        "supervised": ["51.00"],
        "align-kd": ["50.00 (-1.00)"],
        "teacher": ["52.00 (+1.00)"],
    }
    # and a run may be beside, also one with a teacher
    run = write_run("run", student={"gqa": 60.0}, teacher={"gqa": 61.0})
    assert list(cells(make_report([run, folder]))) == [
        "model", "run", "align-kd", "supervised", "teacher", "teacher of run",
    ]  # fmt: skip


def test_columns_have_the_benchmarks_titles() -> None:
    assert Column("sqa", None).title == "ScienceQA-IMG" and Column("sqa", 3).title == "ScienceQA-IMG, first 3"
