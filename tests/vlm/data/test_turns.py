"""Turns and the form in which stores hold them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.keys import keys_not_read
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turn_checks import check_trained, check_turns
from alignkd.vlm.data.turns import Generated, Turn, questions_without_answer, turns_of
from alignkd.vlm.errors import LabelMaskError
from alignkd.vlm.inputs.sample_key import sample_key

texts = st.text(st.characters(codec="utf-8"), max_size=20)
answers = st.builds(Turn, st.just("gpt"), texts, st.booleans(), st.none() | st.just(Generated()))
others = st.builds(Turn, st.sampled_from(["human", "system"]), texts)
conversations = st.lists(answers | others, max_size=6).map(tuple)


@given(conversations)
def test_turns_come_back_from_what_stores_hold(turns: tuple[Turn, ...]) -> None:
    held = Sample(index=0, id="a", images=(), turns=turns).conversations()
    assert turns_of(json.loads(json.dumps(held))) == turns
    for turn, written in zip(turns, held, strict=True):
        assert written.get("trained", True) is turn.trained
        assert ("trained" in written) is (turn.speaker == "gpt" and not turn.trained)
        assert written.get("generated") is (None if turn.generated is None else True)


said = st.tuples(st.lists(st.tuples(texts, texts, st.booleans()), min_size=1, max_size=4), st.none() | texts)


@given(said)
def test_what_stores_hold_is_an_entry_with_the_same_turns(case: tuple[list[tuple[str, str, bool]], str | None]) -> None:
    rounds, system = case
    turns = () if system is None or not system.strip() else (Turn("system", system),)
    for question, answer, trained in rounds:
        turns += (Turn("human", question), Turn("gpt", answer, trained))
    held: list[dict[str, Any]] = Sample(index=0, id="a", images=(), turns=turns).conversations()
    sample = sample_of_entry(0, {"conversations": held})
    if any(trained for *_, trained in rounds):
        assert sample.turns == turns and sample.problem is None
    else:
        assert sample.problem is not None and sample.problem.startswith("nothing would be trained")


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}


def written(turns: tuple[Turn, ...]) -> Iterator[dict[str, Any]]:
    """Entries in several dialects with these turns, of which only the first may be a system prompt."""
    roles = {"human": "user", "gpt": "assistant", "system": "developer"}
    messages = [
        {"role": roles[turn.speaker], "content": turn.value} | ({} if turn.trained else {"loss": 0}) for turn in turns
    ]
    yield {"messages": messages}
    yield {"dialog": as_columns(messages)}
    yield {"chat": json.dumps(messages)}
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in messages]
    yield {"conversation": parts}
    bare = [{"role": turn["role"], "value": turn["content"]} for turn in messages]
    yield {"conversations": bare, "masked": [int(not turn.trained) for turn in turns]}
    spoken = [turn for turn in turns if turn.speaker != "system"]
    pairs = [
        {"user": asked.value, "assistant": answer.value, "masked": not answer.trained}
        for asked, answer in zip(spoken[::2], spoken[1::2], strict=True)
    ]
    yield {"texts": pairs, "system": turns[0].value if turns[0].speaker == "system" else None}


@given(said)
def test_every_dialect_has_the_same_turns(case: tuple[list[tuple[str, str, bool]], str | None]) -> None:
    rounds, system = case
    turns = () if system is None or not system.strip() else (Turn("system", system),)
    for question, answer, trained in rounds:
        turns += (Turn("human", question), Turn("gpt", answer, trained))
    turns += (Turn("human", "and?"), Turn("gpt", "yes"))
    # a text may hold a mark of another program by chance
    wanted = sample_of_entry(0, {"conversations": Sample(index=0, id="a", images=(), turns=turns).conversations()})
    assert wanted.problem is None or "which other programs replace by media" in wanted.problem
    for entry in written(turns):
        found = sample_of_entry(0, entry)
        assert (found.turns, found.problem) == (wanted.turns, wanted.problem)
        assert not list(keys_not_read(entry))


def test_keys_of_samples_without_the_new_things_are_as_before() -> None:
    turns = (Turn("human", "hi"), Turn("gpt", "ho"))
    sample = Sample(index=0, id="a", images=(), turns=turns)
    old = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    assert sample.conversations() == old
    keys = {
        sample_key(Sample(index=0, id="a", images=(), turns=other).conversations(), [], "v1")
        for other in (turns, (Turn("system", "s"), *turns), (turns[0], Turn("gpt", "ho", trained=False)))
    }
    written = [(turns[0], Turn("gpt", "ho", generated=how)) for how in (Generated(), Generated(by="a", tokens=3))]
    keys |= {sample_key(Sample(index=0, id="a", images=(), turns=by).conversations(), [], "v1") for by in written}
    assert len(keys) == 4 and sample_key(old, [], "v1") in keys


def test_one_trained_answer_is_enough() -> None:
    masked = [Turn("human", "a"), Turn("gpt", "b", trained=False)]
    check_trained([*masked, Turn("gpt", "c")])
    check_trained(masked[:1])  # a question
    with pytest.raises(LabelMaskError, match="every answer is masked"):
        check_trained(masked)
    check_turns([Turn("system", "s"), *masked], num_images=0)


def test_questions_without_answer_are_counted() -> None:
    asked, answered = Turn("human", "q"), Turn("gpt", "a")
    for turns, count in (
        ((), 0),
        ((asked, answered), 0),
        ((answered, asked, answered, answered), 0),
        ((asked,), 1),
        ((Turn("system", "s"), asked), 1),
        ((asked, answered, asked), 1),
        ((asked, asked, answered, asked), 2),
    ):
        assert questions_without_answer(turns) == count
