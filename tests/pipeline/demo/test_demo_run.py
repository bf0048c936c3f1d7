"""`alignkd demo --quick` from beginning to end, once; the tests read what it left."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from alignkd.pipeline.demo import demo
from alignkd.pipeline.demo.recipes import ROWS
from alignkd.pipeline.demo.settings import FULL, QUICK
from alignkd.student_train.output import TIMINGS

Alignkd = Callable[..., "CompletedProcess[str]"]
TERMS = ("supervised", "logit", "attention", "vision_all", "vision_top")
# the preset with less of everything; the demo that checks the wheel runs the preset itself
SMALL = replace(QUICK, num_scenes=48, num_eval_scenes=24, shard_size=16, steps=6, micro_batch=16, checkpoint_every=4)


@pytest.fixture(scope="session")
def quick_demo(
    alignkd_here: Alignkd,
    phases_from_prepared: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, "CompletedProcess[str]"]:
    """The demo's folder and the finished command."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with phases_from_prepared(), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(demo, "QUICK", SMALL)
        finished = alignkd_here("demo", "--quick", "--out", out, "--json")
    assert finished.returncode == 0, finished.stderr
    return out, finished


@pytest.fixture
def out(quick_demo: tuple[Path, "CompletedProcess[str]"]) -> Path:
    """The demo's folder."""
    return quick_demo[0]


@pytest.fixture
def report(out: Path) -> dict[str, Any]:
    """`report.json`."""
    found: dict[str, Any] = read(out / "report.json")
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, timings left out."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


@contextmanager
def without(folder: Path) -> Iterator[None]:
    """`folder` does not exist for a while."""
    away = folder.with_name(f"{folder.name}-away")
    folder.rename(away)
    try:
        yield
    finally:
        away.rename(folder)


def test_report_has_the_promised_form(
    quick_demo: tuple[Path, "CompletedProcess[str]"], out: Path, report: dict[str, Any]
) -> None:
    assert json.loads(quick_demo[1].stdout) == report
    assert set(report) == {"teacher", "majority", "students", "settings", "seconds", "stores"}
    assert set(report["students"]) == {"supervised", "align_kd", "layers"}
    for student in report["students"].values():
        assert len(student["accuracy"]) == 1
        assert set(student["by_type"]) == set(report["teacher"]["by_type"])
        assert all(len(values) == 1 for values in student["by_type"].values())
    conversations = read(out / "data" / "train" / "conversations.json")
    assert report["stores"]["tqv"]["records"] == len(conversations)
    shards = list((out / "stores" / "tqv" / "shards").rglob("*"))
    assert report["stores"]["tqv"]["bytes"] <= sum(path.stat().st_size for path in shards if path.is_file())
    assert {"data", "dump tqv", "train", "evaluate"} < set(report["seconds"])
    assert report["settings"]["quick"] is True


@pytest.mark.parametrize("model", ["teacher", "supervised", "align_kd"])
def test_reported_accuracies_equal_a_recount_against_the_question_file(
    out: Path, report: dict[str, Any], model: str
) -> None:
    questions = read(out / "data" / "test" / "conversations.json")
    file = "teacher" if model == "teacher" else f"{model}-seed-0"
    answers = read(out / "evaluations" / f"{file}.json")["answers"]
    right, with_picture = defaultdict[str, list[bool]](list), list[bool]()
    for question, answer in zip(questions, answers, strict=True):
        assert answer["id"] == question["id"]
        is_right = answer["found"] == question["conversations"][1]["value"]
        right[question["question_types"][0]].append(is_right)
        if "image" in question:
            with_picture.append(is_right)
    expected = {name: mean(flags) for name, flags in right.items()}
    overall = mean(with_picture)
    assert report["settings"]["num_visual"] == len(with_picture) < len(questions)
    if model == "teacher":
        assert report["teacher"] == {"accuracy": pytest.approx(overall), "by_type": pytest.approx(expected)}
    else:
        student = report["students"][model]
        assert student["accuracy"] == [pytest.approx(overall)]
        assert student["by_type"] == {name: [pytest.approx(value)] for name, value in expected.items()}


def test_the_teacher_answers_more_than_any_student(report: dict[str, Any]) -> None:
    """The shipped teacher can read; a few steps do not make a student that can."""
    assert report["teacher"]["accuracy"] > 0.7
    for student in report["students"].values():
        assert student["accuracy"][0] < report["teacher"]["accuracy"]


def test_the_table_is_shown_and_is_the_one_of_the_page(
    quick_demo: tuple[Path, "CompletedProcess[str]"], out: Path, report: dict[str, Any]
) -> None:
    page = (out / "report.md").read_text()
    assert "`alignkd demo --quick`" in page
    _, _, table = quick_demo[1].stderr.partition("-" * 40)
    warning = f"Students of {report['settings']['steps']} steps are trained too little to compare the rows"
    assert warning in page and warning in table
    for label, accuracy in (
        ("teacher", report["teacher"]["accuracy"]),
        ("supervised only", report["students"]["supervised"]["accuracy"][0]),
        ("Align-KD", report["students"]["align_kd"]["accuracy"][0]),
    ):
        cells = next(line for line in page.splitlines() if line.startswith(f"| {label} |")).strip("| ").split(" | ")
        assert cells[1] == f"{100 * accuracy:.1f}"
        shown = next(line for line in table.splitlines() if line.startswith(f"{label}  "))
        assert shown.removeprefix(label).split() == " ".join(cells[1:]).split()


def test_pictures_are_real_and_all_are_on_the_page(out: Path) -> None:
    pictures = sorted((out / "pictures").glob("*.png"))
    assert {path.stem for path in pictures} >= {"losses", "attention-position", "attention-count"}
    page = (out / "report.md").read_text()
    for path in pictures:
        assert f"](pictures/{path.name})" in page
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 400
            assert np.asarray(picture.convert("L")).std() > 10


def test_students_differ_in_losses_and_chosen_settings_only(out: Path) -> None:
    supervised, align_kd = (yaml.safe_load(file.read_text()) for file in configs(out, "supervised", "align_kd"))
    losses, others = supervised["train"].pop("losses"), align_kd["train"].pop("losses")
    assert [losses[term] > 0 for term in TERMS] == [True, False, False, False, False]
    assert all(others[term] > 0 for term in TERMS)
    assert supervised["train"].pop("output") != align_kd["train"].pop("output")
    for config, row in ((supervised, ROWS["supervised"]), (align_kd, ROWS["align_kd"])):
        assert row.train.keys() <= {"learning_rate", "weight_decay"}
        for key in ("learning_rate", "weight_decay"):
            assert config["train"].pop(key) == row.train.get(key, getattr(SMALL, key))
    assert supervised == align_kd
    # Same weights and same batch: before the first update they cannot differ.
    first, other = (metrics(out / "students" / name / "seed-0")[0] for name in ("supervised", "align_kd"))
    assert first["supervised"] == pytest.approx(other["supervised"], rel=1e-6)
    assert [other[term] is None for term in TERMS] == [False] * 5


def configs(out: Path, *names: str) -> list[Path]:
    return [out / "configs" / f"{name}-seed-0.yaml" for name in names]


def test_the_store_verifies(alignkd_here: Alignkd, out: Path) -> None:
    finished = alignkd_here("shards", "verify", out / "stores" / "tqv", "--json")
    assert finished.returncode == 0
    assert json.loads(finished.stdout)["num_records"] == len(read(out / "data" / "train" / "conversations.json"))


def test_phase_two_needs_no_teacher(alignkd_prepared: Alignkd, out: Path, tmp_path: Path) -> None:
    """The same run without the teacher's checkpoint on the disk: the same losses, to the last bit."""
    config = yaml.safe_load(configs(out, "align_kd")[0].read_text())
    config["train"]["output"] = str(tmp_path / "again")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(config))
    with without(out / "teacher"):
        finished = alignkd_prepared("train", tmp_path / "again.yaml")
    assert finished.returncode == 0, finished.stderr
    assert metrics(tmp_path / "again") == metrics(out / "students" / "align_kd" / "seed-0")


def test_a_second_call_finishes_what_is_missing_and_keeps_the_rest(
    alignkd_here: Alignkd,
    phases_prepared: None,
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    report: dict[str, Any],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(demo, "QUICK", SMALL)
    again = tmp_path / "again"
    # Paths inside the configurations are absolute, so the copy takes the original's place.
    shutil.copytree(out, again)
    with without(out):
        again.rename(out)
        try:
            kept = out / "students" / "supervised" / "seed-0" / "student" / "model.safetensors"
            (out / "evaluations" / "align_kd-seed-0.json").unlink()
            (out / "report.json").unlink()
            before = kept.stat().st_mtime_ns
            finished = alignkd_here("demo", "--quick", "--out", out)
            assert finished.returncode == 0, finished.stderr
            assert kept.stat().st_mtime_ns == before
            second = read(out / "report.json")
        finally:
            shutil.rmtree(out)
    assert "nothing left to do" in finished.stderr
    assert [line.split("  ")[0] for line in finished.stdout.splitlines()[3:7]] == [
        "teacher",
        "most frequent answer",
        "supervised only",
        "Align-KD",
    ]
    for part in ("teacher", "majority", "students", "settings", "stores"):
        assert second[part] == report[part]
    assert second["seconds"]["dump tqv"] > report["seconds"]["dump tqv"]


def test_other_settings_are_refused_in_one_line(alignkd_here: Alignkd, out: Path) -> None:
    finished = alignkd_here("demo", "--out", out)
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1
    assert f"steps is {SMALL.steps} there, {FULL.steps} requested" in finished.stderr
    assert "choose another --out" in finished.stderr


def test_a_folder_of_something_else_is_left_alone(alignkd_here: Alignkd, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    finished = alignkd_here("demo", "--quick", "--out", tmp_path)
    assert finished.returncode == 1
    assert finished.stderr == f"alignkd: {tmp_path}: is not empty and does not contain a demo; choose another --out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
