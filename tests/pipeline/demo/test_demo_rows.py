"""Rows with scenes that the teacher answers, one with attention of chosen layers, from end to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.demo import demo, recipes
from alignkd.pipeline.demo.folder import DemoFolder
from alignkd.pipeline.demo.recipes import MoreScenes
from alignkd.pipeline.demo.run_config import write_run_config
from alignkd.storage import StoreReader
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.errors import InputError

NUM_SCENES, NUM_MORE, STEPS = 12, 8, 2


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, phases_prepared: None) -> None:
    """The quick preset and all rows are small; more scenes are few."""
    settings = replace(
        demo.QUICK,
        num_scenes=NUM_SCENES,
        num_eval_scenes=4,
        shard_size=32,
        steps=STEPS,
        micro_batch=8,
        teacher_batch=16,
    )
    monkeypatch.setattr(demo, "QUICK", settings)
    for name, row in recipes.ROWS.items():
        if row.store.more is not None:
            more = MoreScenes(num=NUM_MORE, answers=row.store.more.answers)
            monkeypatch.setitem(recipes.ROWS, name, replace(row, store=replace(row.store, more=more)))


def test_rows_of_more_scenes(tmp_path: Path, small: None) -> None:
    out, rows = tmp_path / "out", ["supervised_more", "supervised_more_true", "layers_more"]
    report = demo.run_demo(out, quick=True, rows=rows)
    assert list(report["students"]) == ["supervised", *rows]
    longer = [STEPS * recipes.ROWS[row].steps for row in rows]
    assert [student["steps"] for student in report["students"].values()] == [STEPS, *longer] and min(longer) > STEPS
    assert report["students"]["layers_more"]["partner"] == "supervised_more"
    assert report["students"]["layers_more"]["difference"] is not None
    for row in rows:
        lines = [json.loads(line) for line in (out / f"students/{row}/seed-0/metrics.jsonl").read_text().splitlines()]
        assert len(lines) == report["students"][row]["steps"]
        assert all((line.get("attention") is not None) == row.startswith("layers") for line in lines)

    own = read(out / "data/train/conversations.json")
    true = read(out / f"data/more-{NUM_MORE}/conversations.json")
    generated = [
        json.loads(line)
        for file in sorted((out / f"data/generated-{NUM_MORE}/answers").iterdir())
        for line in file.read_text().splitlines()
    ]
    assert [entry["id"] for entry in generated] == [entry["id"] for entry in true]
    assert [values(entry, "human") for entry in generated] == [values(entry, "human") for entry in true]
    # the shipped teacher is nearly always right about handwriting that it was trained on
    answers, right = ([value for entry in entries for value in values(entry, "gpt")] for entries in (generated, true))
    assert sum(mine == other for mine, other in zip(answers, right, strict=True)) > 0.85 * len(right)
    both = len(own) + len(true)
    for name, num in {"tqv": len(own), "layers_more": both, "tqv_more_true": both}.items():
        assert len(StoreReader(out / "stores" / name)) == num == report["stores"][name]["records"]
    # the scenes are further ones, and not those of the training set
    seen, more = ({json.dumps(entry["conversations"]) for entry in entries} for entries in (own, true))
    assert not seen & more


def test_rows_of_published_methods(tmp_path: Path, small: None) -> None:
    """All of them, from one store; each computes the terms of its preset."""
    out = tmp_path / "out"
    report = demo.run_demo(out, quick=True, objectives=["all"])
    assert list(report["students"]) == ["supervised", *(row.name for row in recipes.OBJECTIVES)]
    assert report["stores"].keys() == {"tqv", "objectives"}
    for row in recipes.OBJECTIVES:
        name, weights = row.name, {"supervised": 1.0, **row.losses}
        lines = [json.loads(line) for line in (out / f"students/{name}/seed-0/metrics.jsonl").read_text().splitlines()]
        weighted = {term for term in TERMS if weights.get(term)}
        assert len(lines) == STEPS and all(weighted == TERMS.keys() & line.keys() for line in lines), name
        assert report["students"][name]["difference"] is not None
    assert "`alignkd demo --quick --objectives all`" in (out / "report.md").read_text()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def values(entry: dict[str, Any], speaker: str) -> list[str]:
    return [turn["value"] for turn in entry["conversations"] if turn["from"] == speaker]


def test_unknown_rows_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--rows: hints is not among supervised"):
        demo.run_demo(tmp_path / "out", quick=True, rows=["hints"])
    with pytest.raises(InputError, match=r"--objectives: hints is not among .*mcd.*or all"):
        demo.run_demo(tmp_path / "out", quick=True, objectives=["mcd", "hints"])
    assert not (tmp_path / "out").exists()


def test_a_student_of_other_settings_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A row whose settings have changed must not be reported with the answers of a student of the old ones."""
    folder, row = DemoFolder(tmp_path), recipes.ROWS["layers"]
    student = folder.student(row.name, 0)
    write_run_config(folder, demo.QUICK, replace(row, train={"learning_rate": 0.25}), student)
    write_run_config(folder, demo.QUICK, row, student)  # nothing was trained
    before = student.config.read_bytes()
    student.output.mkdir(parents=True)
    write_run_config(folder, demo.QUICK, row, student)
    for changed, message in (
        (replace(row, train={"learning_rate": 0.5}), r"train\.learning_rate is 0\.004 there, 0\.5 requested"),
        (replace(row, losses={**row.losses, "logit": 0.3}), r"train\.losses\.logit is absent there, 0\.3 requested"),
        (replace(row, losses={**row.losses, "attention_layers": {0: 1}}), r"attention_layers\.0 is 0 there, 1 requ"),
    ):
        with pytest.raises(InputError, match=rf"layers-seed-0\.yaml: .*{message}.*choose another --out"):
            write_run_config(folder, demo.QUICK, changed, student)
    assert student.config.read_bytes() == before
