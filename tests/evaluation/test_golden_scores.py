"""Headline, totals and readings equal those of the original scripts, which were run on the same answers."""

from typing import Any

import pytest
from golden_evaluations import NAMES, answers_to, differences, expected, scored

from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.score import Item

each_benchmark = pytest.mark.parametrize("name", NAMES)

# a random letter of the official tool of mmbench
NO_TARGET = "tool_without_api_accuracy"
# answers that are scored without an option, although they differ from the questions
SCORED = {
    ("gqa", "answers_extra.jsonl"),
    ("gqa", "answers_reordered.jsonl"),
    ("sqa", "answers_extra.jsonl"),
    ("sqa", "answers_reordered.jsonl"),
    ("textvqa", "answers_older_prompts.jsonl"),
    ("mme", "answers_category_all_other.jsonl"),
    ("mmbench", "answers_reordered.jsonl"),
}
# answers on which the original fails, and the headline by the documented definition
DEFINED = {
    ("textvqa", "answers_ocr_newline.jsonl"): 74.5945945945946,
    ("mme", "answers_newline.jsonl"): 1075.0,
    ("mme", "answers_tab.jsonl"): 1075.0,
    ("pope", "answers_all_no.jsonl"): 0.0,
}
VARIANTS = [(name, file) for name in NAMES for file in expected(name)["variants"] if file.endswith(".jsonl")]
WITH_NUMBER = [(name, file) for name, file in VARIANTS if "headline" in expected(name)["variants"][file]]
FAILING = [(name, file) for name, file in VARIANTS if (name, file) not in {*WITH_NUMBER, *DEFINED}]


def without_random(totals: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in totals.items() if key != NO_TARGET}


@each_benchmark
def test_headline_and_totals(name: str) -> None:
    wanted, score = expected(name), scored(name)
    assert score.headline_name == wanted["headline"]["name"]
    assert differences(score.headline_value, wanted["headline"]["value"]) == []
    assert differences(score.totals, without_random(wanted["totals"])) == []
    assert score.as_json()["headline"] == {"name": score.headline_name, "value": score.headline_value}


def golden_reading(name: str, item: dict[str, Any]) -> tuple[str | None, Any]:
    """How the original read an answer, and what it compared it with."""
    if name == "gqa":
        return item["normalised"], item["gold"]
    if name == "sqa":
        return None if item["parsed"] == "FAILED" else item["parsed"], item["gold"]
    if name == "textvqa":
        return item["normalised"], tuple(item["gold_normalised"])
    if name == "mme":
        return None if item["read_as"] == "other" else item["read_as"], item["gold"]
    return (item["letter"], item["gold"]) if name == "mmbench" else (item["read_as"], item["label"])


@each_benchmark
def test_every_answer_is_read_as_by_the_original(name: str) -> None:
    readings: dict[tuple[str | int, str], list[Item]] = {}
    for item in scored(name).items:
        readings.setdefault((item.id, item.text), []).append(item)
    for wanted in expected(name)["items"]:
        if "not_counted" in wanted:
            continue
        item = readings[wanted["question_id"], wanted["text"]].pop(0)
        assert (item.read_as, item.gold, item.score) == (*golden_reading(name, wanted), wanted["score"]), wanted
    assert not any(readings.values())


@each_benchmark
def test_unreadable_answers_are_those_without_a_reading(name: str) -> None:
    counted = [item for item in expected(name)["items"] if "not_counted" not in item]
    wanted = [item for item in counted if golden_reading(name, item)[0] is None]
    assert sorted(map(str, scored(name).unreadable)) == sorted(str(item["question_id"]) for item in wanted)


@pytest.mark.parametrize(("name", "file"), WITH_NUMBER)
def test_as_original_gives_the_originals_number(name: str, file: str) -> None:
    wanted, score = expected(name)["variants"][file], scored(name, file, as_original=True)
    assert differences(score.headline_value, wanted["headline"]) == []
    assert differences(score.totals, without_random(wanted["totals"])) == []


@pytest.mark.parametrize(("name", "file"), WITH_NUMBER)
def test_only_complete_answers_are_scored_without_an_option(name: str, file: str) -> None:
    if (name, file) in SCORED:
        wanted, score = expected(name)["variants"][file], scored(name, file)
        assert differences(score.headline_value, wanted["headline"]) == []
        assert differences(score.totals, without_random(wanted["totals"])) == []
    else:
        with pytest.raises(AnswersError, match="give --as-original"):
            scored(name, file)


@pytest.mark.parametrize(("name", "file"), WITH_NUMBER)
def test_what_is_scored_as_by_the_original_is_noted(name: str, file: str) -> None:
    notes = set(scored(name, file, as_original=True).notes) - set(scored(name).notes)
    is_usual = (name, file) in SCORED and file != "answers_extra.jsonl"
    assert bool(notes) != is_usual


@pytest.mark.parametrize(("name", "file"), list(DEFINED))
def test_answers_that_stop_the_original_have_a_definition(name: str, file: str) -> None:
    assert "error" in expected(name)["variants"][file]
    assert differences(scored(name, file).headline_value, DEFINED[name, file]) == []
    assert len(answers_to(name, file)) == len(answers_to(name))


@pytest.mark.parametrize(("name", "file"), FAILING)
@pytest.mark.parametrize("as_original", [False, True])
def test_answers_without_a_number_are_refused(name: str, file: str, as_original: bool) -> None:
    with pytest.raises(AnswersError):
        scored(name, file, as_original=as_original)
