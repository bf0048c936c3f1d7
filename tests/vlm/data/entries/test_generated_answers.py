"""Answers that a model wrote: the key `generated` of a turn."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.keys import keys_not_read
from alignkd.vlm.data.turns import Generated, Turn

HOW = {"by": "teacher", "logprob": -3.25, "tokens": 12, "finished": True}
QUESTION, ANSWER = Turn("human", "q"), Turn("gpt", "a", generated=Generated(**HOW))


def llava(**answer: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **answer}]}


def problem_of(value: Any, *, key: str = "generated") -> str:
    problem = sample_of_entry(0, llava(**{key: value})).problem or ""
    assert "\n" not in problem and len(problem) < 300
    return problem


def test_every_list_of_turns_may_name_the_model() -> None:
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "generated": HOW}]
    for entry in (
        llava(generated=HOW),
        {"messages": said},
        {"chat": json.dumps(said)},
        {"dialog": {key: [turn.get(key) for turn in said] for key in ("role", "content", "generated")}},
        {"texts": [{"user": "q", "assistant": "a", "generated": HOW}]},
        llava(generated={**HOW, "more": None}),  # Parquet gives every object all keys
    ):
        sample = sample_of_entry(0, entry)
        assert (sample.problem, sample.turns) == (None, (QUESTION, ANSWER))
        assert not list(keys_not_read(entry))


def test_null_and_false_mean_that_no_model_wrote_it() -> None:
    for value in (None, False):
        assert sample_of_entry(0, llava(generated=value)).turns == (QUESTION, Turn("gpt", "a"))
    asked = [{"from": "human", "value": "q", "generated": False}, {"from": "gpt", "value": "a"}]
    assert sample_of_entry(0, {"conversations": asked}).turns == (QUESTION, Turn("gpt", "a"))


figures = st.fixed_dictionaries(
    {},
    optional={
        "by": st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip())),
        "logprob": st.floats(max_value=0, allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 0),
        "tokens": st.integers(0, 10**6),
        "finished": st.booleans(),
    },
)


@given(figures)
def test_what_is_written_is_read_again(how: dict[str, Any]) -> None:
    written = json.loads(json.dumps(Generated(**how).to_json()))
    (_, answer) = sample_of_entry(0, llava(generated=written)).turns
    assert answer.generated == Generated(**how)
    assert written is True or written == how


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("teacher", "turn 1: key 'generated' is 'teacher', expected an object or true; write it as `alignkd generate`"),
        ([HOW], "expected an object or true"),
        (1, "key 'generated' is 1, expected an object or true"),
        ({**HOW, "model": "x"}, "has 'model', expected only by, logprob, tokens, finished"),
        ({"by": ""}, "'by' is '', expected the name of a model"),
        ({"by": 3}, "'by' is 3, expected the name of a model"),
        ({"logprob": 0.1}, "'logprob' is 0.1, expected a finite number of 0 or less"),
        ({"logprob": -math.inf}, "'logprob' is -inf, expected a finite number of 0 or less"),
        ({"logprob": math.nan}, "'logprob' is nan, expected a finite number of 0 or less"),
        ({"logprob": "-3"}, "'logprob' is '-3', expected a finite number of 0 or less"),
        ({"logprob": False}, "'logprob' is False, expected a finite number of 0 or less"),
        ({"tokens": -1}, "'tokens' is -1, expected 0 or more"),
        ({"tokens": 1.5}, "'tokens' is 1.5, expected 0 or more"),
        ({"tokens": True}, "'tokens' is True, expected 0 or more"),
        ({"finished": 1}, "'finished' is 1, expected true or false"),
    ],
)
def test_other_values_are_refused(value: Any, said: str) -> None:
    assert said in problem_of(value)
    assert problem_of(value, key="Generated").startswith("turn 1: key 'Generated'")


def test_only_answers_are_written_by_a_model() -> None:
    asked = {"from": "human", "value": "q", "generated": HOW}
    problem = sample_of_entry(0, {"conversations": [asked, {"from": "gpt", "value": "a"}]}).problem
    assert problem is not None and problem.startswith("turn 0: key 'generated' is of a human turn, but only answers")
    first = {"messages": [{"role": "assistant", "content": "a", "generated": HOW}, {"role": "user", "content": "q"}]}
    assert "no question before it" in (sample_of_entry(0, first).problem or "")
    assert "keep one of the two" in (sample_of_entry(0, llava(generated=HOW, Generated=HOW)).problem or "")


def test_a_masked_answer_may_be_generated() -> None:
    (_, answer, *_) = sample_of_entry(
        0,
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "generated": True, "loss": 0},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
    ).turns
    assert answer == Turn("gpt", "a", trained=False, generated=Generated())
