"""`alignkd eval score`: what it prints and writes, and its errors."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from golden_evaluations import GOLDEN, NAMES, differences, expected

from alignkd.pipeline.cli import main


def run(name: str, data: Path, answers: Path, *options: str) -> Result:
    arguments = ["eval", "score", "--benchmark", name, "--data", str(data), "--answers", str(answers), *options]
    return CliRunner().invoke(main, arguments)


def printed_json(name: str, file: str, *options: str) -> dict[str, Any]:
    result = run(name, GOLDEN / name / "data", GOLDEN / name / file, "--json", *options)
    assert result.exit_code == 0, result.output
    values: dict[str, Any] = json.loads(result.stdout)
    return values


@pytest.mark.parametrize("name", NAMES)
def test_json(name: str) -> None:
    wanted, found = expected(name), printed_json(name, "answers.jsonl")
    assert found["benchmark"] == name
    assert differences(found["headline"], wanted["headline"]) == []
    totals = {key: value for key, value in wanted["totals"].items() if not key.startswith("tool_without_api")}
    assert differences(found["totals"], totals) == []
    assert found["counts"]["unreadable"] == len(found["unreadable"])
    assert found["notes"]


def test_as_original() -> None:
    wanted = expected("pope")["variants"]["answers_missing.jsonl"]
    found = printed_json("pope", "answers_missing.jsonl", "--as-original")
    assert differences(found["headline"]["value"], wanted["headline"]) == []
    assert any("questions without an answer: 1 of 32" in note for note in found["notes"])


def test_text() -> None:
    result = run("pope", GOLDEN / "pope" / "data", GOLDEN / "pope" / "answers.jsonl")
    lines = result.stdout.splitlines()
    assert lines[0] == "pope  mean_f1 0.5716  (32 questions, 32 answers, 0 unreadable)"
    assert "  mean_accuracy  0.55" in lines
    assert any(line.startswith("    random  samples 10, TP 2, FP 4, ") for line in lines)
    assert lines[-2] == "note: 32 questions instead of the published 8910"
    assert lines[-1] == "note: answers read as yes without the word: 14 (7, 9, 10 and 11 more)"
    mme = run("mme", GOLDEN / "mme" / "data", GOLDEN / "mme" / "answers.jsonl")
    assert mme.stdout.startswith("mme  perception 1075.00 points  (48 questions, 48 answers, 9 unreadable)\n")
    assert "unreadable, so wrong: position/0004.png, position/0004.png, color/0006.png and 6 more\n" in mme.stdout


def test_root(tmp_path: Path) -> None:
    (tmp_path / "pope").symlink_to(GOLDEN / "pope" / "data")
    assert run("pope", tmp_path, GOLDEN / "pope" / "answers.jsonl").exit_code == 0


def test_list(tmp_path: Path) -> None:
    listing = tmp_path / "items.jsonl"
    folder = GOLDEN / "mmbench"
    result = run("mmbench", folder / "data", folder / "answers.jsonl", "--list", str(listing))
    assert result.stdout.endswith(f"wrote {listing}\n")
    items = [json.loads(line) for line in listing.read_text().splitlines()]
    assert items[0] == {"question_id": 3, "text": "B", "read_as": "B", "gold": "B", "score": 1.0}
    assert [item["question_id"] for item in items if item["read_as"] is None] == [56, 1000044, 1000055, 2000028]
    assert run("mmbench", folder / "data", folder / "answers.jsonl", "--list", str(listing)).exit_code == 0


def test_list_replaces_no_other_file(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    content = (GOLDEN / "pope" / "answers.jsonl").read_bytes()
    answers.write_bytes(content)
    for options in (["--list", str(answers)], ["--list", str(answers), "--force"]):
        result = run("pope", GOLDEN / "pope" / "data", answers, *options)
        assert result.exit_code == 1 and "is an input of the command" in result.stderr
    (tmp_path / "other").write_text("x")
    result = run("pope", GOLDEN / "pope" / "data", answers, "--list", str(tmp_path / "other"))
    assert result.exit_code == 1 and "already exists" in result.stderr
    assert answers.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "data", "answers", "said"),
    [
        ("gqa", "pope/data", "gqa/answers.jsonl", "it is the folder of pope, not of gqa"),
        ("gqa", "none", "gqa/answers.jsonl", "no such folder"),
        ("gqa", "gqa/data", "none.jsonl", "cannot be read"),
        ("gqa", "gqa/data", "gqa/answers_missing.jsonl", "answers_missing.jsonl: questions without an answer: 1 of 31"),
        ("pope", "pope/data", "pope/answers_reordered.jsonl", "put the answers in the order of the question file"),
        ("textvqa", "textvqa/data", "pope/answers.jsonl", "textvqa does not have"),
        ("mme", "mme/data", "pope/answers.jsonl", "has no such question"),
        ("pope", "pope/data", "README.md", "README.md: line 1: not a JSON object"),
    ],
)
def test_errors_are_one_line(name: str, data: str, answers: str, said: str) -> None:
    result = run(name, GOLDEN / data, GOLDEN / answers)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("alignkd: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


def test_unknown_benchmarks_are_a_usage_error() -> None:
    result = run("vqa", GOLDEN, GOLDEN)
    assert result.exit_code == 2 and "'vqa' is not one of 'gqa', 'sqa'" in result.stderr
