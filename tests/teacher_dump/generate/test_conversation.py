"""Which question comes next, what the teacher sees of it, and what is an entry in the end."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.teacher_dump.generate.conversation import Conversation, next_question
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Generated, Turn

LETTERS = {"s": "system", "h": "human", "g": "gpt"}


def sample_of(speakers: str, **fields: object) -> Sample:
    """`shhg`: a system prompt, two questions, an answer to the second; of a data set with `answers: missing`."""
    turns = tuple(Turn(LETTERS[letter], f"{letter}{number}") for number, letter in enumerate(speakers))
    values: dict[str, object] = {"index": 3, "id": "a", "images": (), "turns": turns, **fields}
    values = {"unanswered": next_question(values["turns"]) is not None, **values}  # type: ignore[arg-type]
    return Sample(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [("h", 0), ("hg", None), ("hh", 0), ("hgh", 2), ("shhg", 1), ("ghg", None), ("hghgh", 4), ("", None)],
)
def test_the_next_question(speakers: str, expected: int | None) -> None:
    assert next_question(sample_of(speakers).turns) == expected


@given(st.text("hg", max_size=8), st.sampled_from(["missing", "all"]))
def test_every_question_is_answered_once_and_in_order(speakers: str, answers: Literal["missing", "all"]) -> None:
    conversation = Conversation.begin(sample_of(f"s{speakers}"), 0, answers)
    asked = []
    while conversation.asks:
        prompt = conversation.prompt()
        assert prompt.turns[-1].speaker == "human"
        assert all(turn.speaker != "gpt" or turn.value for turn in prompt.turns)
        asked.append(prompt.turns[-1].value)
        conversation.answer(f"to {asked[-1]}", Generated(by="t"))
    finished = conversation.finished(number_id=False).turns
    for turn, after in zip(finished, [*finished[1:], Turn("", "")], strict=True):
        assert turn.speaker != "human" or after.speaker == "gpt"
        if turn.speaker == "human" and turn.value in asked:
            assert after.value == f"to {turn.value}" and after.generated == Generated(by="t")
    given_answers = [turn for turn in finished if turn.speaker == "gpt" and turn.generated is None]
    assert len(given_answers) == (speakers.count("g") if answers == "missing" else 0)
    questions = [f"h{number}" for number, letter in enumerate(f"s{speakers}") if letter == "h"]
    assert asked == ([q for q in questions if q in asked] if answers == "missing" else questions)
    assert len(conversation.written) == len(asked)


def test_a_question_is_asked_with_the_images_that_it_shows() -> None:
    turns = (Turn("human", "<image>?"), Turn("human", "and <image>, <image>?"), Turn("human", "which?"))
    conversation = Conversation.begin(sample_of("", turns=turns, images=("a.png", "b.png", "c.png")), 0, "missing")
    shown = []
    while conversation.asks:
        shown.append(conversation.prompt().images)
        conversation.answer("x", Generated())
    assert shown == [("a.png",), ("a.png", "b.png", "c.png"), ("a.png", "b.png", "c.png")]


def test_what_cannot_be_answered_has_a_reason() -> None:
    problem = Conversation.begin(sample_of("h", problem="broken", turns=()), 0, "all")
    assert not problem.asks and str(problem.reason) == "broken"
    held = Conversation.begin(sample_of("h", images=("a.png",), contents=(b"png",)), 0, "missing")
    assert not held.asks and "alignkd data convert" in str(held.reason)
    not_marked = sample_of("hgh", unanswered=False)
    refused = Conversation.begin(not_marked, 0, "missing")
    assert not refused.asks and "set `answers: missing` in the section of its data set" in str(refused.reason)
    assert Conversation.begin(not_marked, 0, "all").asks
    assert Conversation.begin(sample_of("hghg", unanswered=False), 0, "missing").reason is None
    empty = Conversation.begin(sample_of("hgh"), 0, "missing")
    empty.answer("", Generated())
    assert not empty.asks and str(empty.reason) == "the teacher's answer to question 2 is empty"


def test_an_unanswered_sample_becomes_one_without_a_problem() -> None:
    sample = sample_of("h", problem="question without an answer", unanswered=True)
    conversation = Conversation.begin(sample, 1, "missing")
    assert conversation.prompt().problem is None
    conversation.answer("yes", Generated())
    finished = conversation.finished(number_id=True)
    assert (finished.id, finished.problem, finished.unanswered) == ("a-2", None, False)
