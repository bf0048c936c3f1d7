"""Data sets of questions (`answers: missing`): what counts as a question, and what is refused."""

from typing import Any

import pytest

from alignkd.vlm.data.entries.answers.missing import UNANSWERED
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.keys import keys_not_read
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Turn

MISSING = EntryReading(answers="missing")
ASKED, AGAIN = Turn("human", "q"), Turn("human", "r")


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str, **more: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text, **more}


def read(entry: dict[str, Any]) -> Sample:
    return sample_of_entry(0, entry, MISSING)


@pytest.mark.parametrize(
    ("entry", "turns"),
    [
        ({"conversations": [human("q")]}, (ASKED,)),
        ({"conversations": [human("q"), human("r")]}, (ASKED, AGAIN)),
        ({"conversations": [human("q"), gpt("a"), human("r")]}, (ASKED, Turn("gpt", "a"), AGAIN)),
        ({"conversations": [human("q"), human("r"), gpt("a")]}, (ASKED, AGAIN, Turn("gpt", "a"))),
        ({"conversations": [human("q"), gpt("")]}, (ASKED,)),
        (
            {"conversations": [human("q"), gpt("a", loss=0), human("r")]},
            (ASKED, Turn("gpt", "a", trained=False), AGAIN),
        ),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n"}]}, (ASKED,)),
        ({"texts": [{"user": "q"}, {"user": "r", "assistant": ""}]}, (ASKED, AGAIN)),
        ({"question": "q"}, (ASKED,)),
        ({"question": "q", "answer": None}, (ASKED,)),
        ({"question": "q", "answer": ""}, (ASKED,)),
        ({"instruction": "q", "input": "r"}, (Turn("human", "q\nr"),)),
        ({"prompt": "q", "system": "s"}, (Turn("system", "s"), ASKED)),
    ],
)
def test_questions_without_answer(entry: dict[str, Any], turns: tuple[Turn, ...]) -> None:
    sample = read(entry)
    assert (sample.turns, sample.problem, sample.unanswered) == (turns, UNANSWERED, True)
    assert not list(keys_not_read(entry, "missing"))


def test_images_are_shown_by_the_first_question() -> None:
    sample = read({"image": "a.jpg", "question": "q"})
    assert (sample.images, sample.turns) == (("a.jpg",), (Turn("human", "<image>\nq"),))
    entry = {"image": "a.jpg", "question": "q", "caption": "c"}
    assert read(entry).turns == (Turn("human", "<image>\nq"),)
    assert list(keys_not_read(entry, "missing")) == ["caption"]


@pytest.mark.parametrize(
    "entry",
    [
        {"conversations": [human("q"), gpt("a")]},
        {"question": "q", "answer": "a"},
        {"image": "a.jpg", "caption": "c"},
        {"texts": [{"user": "q", "assistant": "a"}]},
    ],
)
def test_an_answered_sample_is_the_same_as_in_other_data(entry: dict[str, Any]) -> None:
    sample = read(entry)
    assert sample.problem is None and not sample.unanswered
    assert sample == sample_of_entry(0, entry)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"conversations": []}, "empty conversation"),
        ({"conversations": [gpt("a")]}, "has no human turn"),
        ({"question": " "}, "no conversation among the keys"),
        ({"question": "q", "prompt": "r"}, "no conversation among the keys"),
        ({"question": "q", "choices": ["a"]}, "is a part of the question"),
        ({"conversations": [human("q"), gpt("a", loss=0)]}, "every answer is masked"),
        ({"conversations": [human("<video>")]}, "which other programs replace by media"),
    ],
)
def test_what_is_no_question_is_refused(entry: dict[str, Any], said: str) -> None:
    sample = read(entry)
    assert said in (sample.problem or "") and not sample.unanswered


def test_other_data_sets_name_the_key() -> None:
    for entry in ({"question": "q"}, {"texts": [{"user": "q"}]}, {"messages": [{"question": "q"}]}):
        sample = sample_of_entry(0, entry)
        assert (sample.problem or "").endswith("set data.answers to missing and run `alignkd generate`")
        assert not sample.unanswered
    assert sample_of_entry(0, {"conversations": [human("q")]}).problem is None  # left to the prompt template
