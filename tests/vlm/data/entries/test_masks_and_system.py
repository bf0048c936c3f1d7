"""Masked answers, system prompts and roles: what is honoured, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError

TRAINED_KEYS = ("loss", "weight", "train", "trained", "training", "trainable", "loss_mask", "loss_weight", "lossMask")
MASKED_KEYS = ("masked", "mask_loss", "mask-loss", "ignore_loss", "ignore", "skip")


def read(*turns: tuple[str, str] | tuple[str, str, dict[str, Any]], **entry: Any) -> Sample:
    """A sample of `messages`, each (role, text) or (role, text, further keys)."""
    messages = [{"role": role, "content": text, **dict(*more)} for role, text, *more in turns]
    reading = entry.pop("reading", EntryReading())
    return sample_of_entry(0, {"messages": messages, **entry}, reading)


def problem_of(*turns: Any, **entry: Any) -> str:
    problem = read(*turns, **entry).problem or ""
    assert "\n" not in problem and len(problem) < 300
    return problem


ASKED, AGAIN = ("user", "q"), ("user", "r")


@pytest.mark.parametrize("key", [*TRAINED_KEYS, *MASKED_KEYS])
def test_an_answer_can_be_left_out(key: str) -> None:
    off: tuple[Any, ...] = (0, 0.0, False) if key in TRAINED_KEYS else (1, 1.0, True)
    on: tuple[Any, ...] = (1, 1.0, True, None) if key in TRAINED_KEYS else (0, 0.0, False, None)
    for values, trained in ((off, False), (on, True)):
        for value in values:
            sample = read(ASKED, ("assistant", "a", {key: value}), AGAIN, ("assistant", "b"))
            wanted = (Turn("human", "q"), Turn("gpt", "a", trained), Turn("human", "r"), Turn("gpt", "b"))
            assert (sample.problem, sample.turns) == (None, wanted)
    listed = [0, off[0], off[0], on[0]] if key in TRAINED_KEYS else [1, off[0], off[0], on[0]]
    sample = read(ASKED, ("assistant", "a"), AGAIN, ("assistant", "b"), **{key: listed})
    assert [turn.trained for turn in sample.turns] == [True, False, True, True] and sample.problem is None


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "false", [0], {}])
def test_other_weights_are_refused(value: Any) -> None:
    said = f"turn 1: key 'weight' is {value!r}; an answer is trained on with weight 1, or not at all; write 1 or 0"
    assert problem_of(ASKED, ("assistant", "a", {"weight": value})).startswith(said)
    assert "turn 1: key 'loss_mask' is 0.5" in problem_of(ASKED, ("assistant", "a"), loss_mask=[0, 0.5])


def test_questions_are_not_trained() -> None:
    for value in (0, False, None):
        assert not problem_of(("user", "q", {"weight": value}), ("assistant", "a"))
    said = "turn 0: key 'weight' (1) is of a human turn, but only answers are trained on; write 0, or remove the key"
    assert problem_of(("user", "q", {"weight": 1}), ("assistant", "a")) == said
    assert "turn 0: key 'loss' (True) is of a system turn" in problem_of(("system", "s", {"loss": True}), ASKED)
    assert "turn 0: key 'loss_mask' (1) is of a human turn" in problem_of(ASKED, ("assistant", "a"), loss_mask=[1, 1])
    for value in (0, 1):  # that a question is masked, or not said to be
        assert not problem_of(("user", "q", {"masked": value}), ("assistant", "a"))


def test_masks_that_disagree_or_leave_nothing() -> None:
    both = {"loss": 1, "masked": True}
    assert problem_of(ASKED, ("assistant", "a", both)).startswith(
        "turn 1: key 'loss' selects it for training, key 'masked'"
    )
    assert "selects it for training" in problem_of(ASKED, ("assistant", "a", {"loss": 1}), train=[0, 0])
    assert problem_of(ASKED, ("assistant", "a", {"loss": 0})).startswith("nothing would be trained: every answer is")
    assert "key 'loss' (0) is not read" in problem_of(ASKED, ("assistant", "a"), loss=0)
    assert "key 'masked' (1) is not read" in problem_of(ASKED, ("assistant", "a"), masked=1)


def test_one_system_prompt_may_remain() -> None:
    turns = (Turn("human", "q"), Turn("gpt", "a"))
    said = (ASKED, ("assistant", "a"))
    given = EntryReading(system="given")
    assert read(*said, reading=given).turns == (Turn("system", "given"), *turns)
    assert read(*said, reading=EntryReading(system=" ")).turns == turns
    for entry in ({"system": "own"}, {"systemPrompt": "own"}, {"system_message": "own", "system": "own"}):
        assert read(*said, **entry, reading=given).turns == (Turn("system", "own"), *turns)
    assert read(("system", "own"), *said, reading=given).turns == (Turn("system", "own"), *turns)
    assert read(("system", "own"), ("developer", "own"), *said).turns == (Turn("system", "own"), *turns)
    assert read(("system", " "), *said, system="own").turns == (Turn("system", "own"), *turns)
    assert read(("system", ""), *said, system=None).turns == turns
    assert "two different system prompts, 'a' and 'b'; keep one" in problem_of(("system", "a"), *said, system="b")
    assert "two different system prompts" in problem_of(("system", "a"), ("developer", "b"), *said)
    assert "two different system prompts" in problem_of(*said, system="a", system_prompt="b")
    assert "turn 2 is a system prompt; it may only come first" in problem_of(*said, ("system", "a"))


def test_roles_are_known_or_given() -> None:
    turns = (Turn("human", "q"), Turn("gpt", "a"))
    for user, assistant in (("Human", "GPT"), ("user", "assistant"), ("prompter", "bot"), (" USER ", "model")):
        assert read((user, "q"), (assistant, "a")).turns == turns
    reading = EntryReading.of(DataSet(path=Path("a"), roles={"Kunde": "human", "user": "gpt"}))
    assert read(("kunde", "q"), ("User", "a"), reading=reading).turns == turns
    assert problem_of(("cat", "q")) == "unknown role 'cat'; name it under data.roles as human, gpt or system"
    assert not problem_of(("tool", "q"), ("gpt", "a"), reading=EntryReading(roles={"tool": "human"}))
    with pytest.raises(InputError, match=r"data.roles: 'cat' is 'assistant', expected one of human, gpt, system"):
        EntryReading(roles={"cat": "assistant"})
