"""Totals and notes that the golden cases do not decide."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_evaluations import GOLDEN, answers_to, copied, scored

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.benchmarks.mmbench.table import Row


@pytest.mark.parametrize(
    ("steps", "counted"),
    [
        ([("select", "door (1)"), ("exist", "?")], 1),
        ([("select", "door (1)"), ("query", "name")], 1),
        ([("select", "door (1)"), ("choose name", "door|gate")], 1),
        ([("select", "door (1)"), ("query", "color")], 2),
        ([("select", "door (1)"), ("choose color", "red|blue")], 2),
        ([("verify", "existence")], 0),
        ([], 0),
    ],
)
def test_gqa_steps(steps: list[tuple[str, str]], counted: int, tmp_path: Path) -> None:
    folder = copied("gqa", tmp_path)
    path = folder / "testdev_balanced_questions.json"
    values = json.loads(path.read_text())
    entry = values["10000001"]
    entry["semantic"] = [{"operation": operation, "argument": argument} for operation, argument in steps]
    path.write_text(json.dumps({"1": entry}))
    score = BENCHMARKS["gqa"].score(folder, [Answer(question_id="1", prompt=None, text="no")])
    assert score.totals["by_steps"] == {str(counted): {"accuracy": 0.0, "questions": 1}}


def test_gqa_distribution(tmp_path: Path) -> None:
    """Two groups of 3 and 1 questions: (1 + 1) of the first, 1 of the second, weighted by 3 and 1."""
    folder = copied("gqa", tmp_path)
    path = folder / "testdev_balanced_questions.json"
    entry: dict[str, Any] = json.loads(path.read_text())["10000001"]
    golds = {"1": ("g", "red"), "2": ("g", "red"), "3": ("g", "blue"), "4": ("h", "one"), "5": (None, "yes")}
    entries = {key: {**entry, "answer": gold, "groups": {"global": group}} for key, (group, gold) in golds.items()}
    path.write_text(json.dumps(entries))
    given = {"1": "Blue", "2": "blue.", "3": "green", "4": "two", "5": "no"}
    answers = [Answer(question_id=key, prompt=None, text=text) for key, text in given.items()]
    first = (0 - 2) ** 2 / 2 + (2 - 1) ** 2 / 1
    score = BENCHMARKS["gqa"].score(folder, answers)
    assert score.totals["distribution"] == pytest.approx((first * 3 + 1 * 1) / 4 / 100)
    path.write_text(json.dumps({"5": entries["5"]}))
    assert BENCHMARKS["gqa"].score(folder, answers[4:]).totals["distribution"] == 0


def mmbench_group(letters: str) -> dict[str, object]:
    """Totals of mmbench with other answers to the four rotations of question 3, whose letters are BADC."""
    rotations = dict(zip((3, 1000003, 2000003, 3000003), letters, strict=True))
    answers = [replace(answer, text=rotations.get(int(answer.question_id), "?")) for answer in answers_to("mmbench")]
    return BENCHMARKS["mmbench"].score(GOLDEN / "mmbench" / "data", answers).totals


@pytest.mark.parametrize(("letters", "right", "asks"), [("BADC", 1, 0), ("BADA", 0, 0), ("BAD?", 0, 1), ("B?DA", 0, 0)])
def test_mmbench_groups(letters: str, right: int, asks: int) -> None:
    totals = mmbench_group(letters)
    assert totals["groups_right"] == right
    others = 14
    assert totals["groups_that_would_ask_gpt"] == others + asks


def test_pope_answers_that_say_nothing_are_noted() -> None:
    assert "answers read as yes without the word: 14 (7, 9, 10 and 11 more)" in scored("pope").notes
    plain = [replace(answer, text="Yes, no") for answer in answers_to("pope")]
    assert len(BENCHMARKS["pope"].score(GOLDEN / "pope" / "data", plain).notes) == 1


def test_textvqa_prompts_without_ocr_tokens_are_noted() -> None:
    assert "prompts without OCR tokens: 1; with them the number is higher" in scored("textvqa").notes
    assert len(scored("textvqa", "answers_older_prompts.jsonl").notes) == 1


def test_mmbench_options_that_are_missing_are_not_looked_for() -> None:
    row = Row(1, {"A": "x", "B": "None", "C": "", "D": "=2", "answer": "A"})
    assert row.options() == {"A": "x"}
    assert Row(1, {"A": "x", "C": "none"}).options() == {"A": "x", "C": "none"}
