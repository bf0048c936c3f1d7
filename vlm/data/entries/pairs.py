"""Entries of preference data: one question with a chosen and a rejected answer, as two entries of conversations.

An entry has `chosen` and `rejected` beside its conversation (LLaVA), beside `prompt` or another key of a question
(TRL), or each of the two holds the whole conversation. An answer is a text, a turn, parts of a text, or turns.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from alignkd.vlm.data.entries.dialects import LISTS, question_alone, question_of
from alignkd.vlm.data.entries.keys import LOSS_KEYS, name_of
from alignkd.vlm.data.entries.plain import is_nothing, plain
from alignkd.vlm.errors import SampleError

Side = Literal["chosen", "rejected"]
SIDES: Final[tuple[Side, ...]] = get_args(Side)

_PROMPT = "prompt"


def entry_of_side(entry: Any, side: Side, default_id: str) -> Any:
    """The conversation with one of the two answers, of which that answer alone is trained on; its id ends in `#SIDE`.

    Args:
        entry: an object of JSON values; anything else is returned as it is.
        default_id: id of an entry without one.

    Raises:
        SampleError: an answer is missing, or the two are not answers to the same question.
    """
    if not isinstance(entry, dict):
        return entry
    entry = plain(entry)
    answers = {name: _turns_of_answer(name, entry.get(name)) for name in SIDES}
    prompt, key, used = _prompt(entry)
    if prompt and [*map(_text, prompt)] == [*map(_text, answers["chosen"][: len(prompt)])]:
        prompt = []  # each of the two holds the whole conversation
    elif prompt and _text(prompt[-1]) == _text(answers["chosen"][0]):
        prompt = prompt[:-1]  # the conversation ends with the chosen answer
    if answers["chosen"][:-1] != answers["rejected"][:-1]:
        raise SampleError("'chosen' and 'rejected' begin with different turns; give both the same, or name a 'prompt'")
    before = [*prompt, *answers[side][:-1]]
    if not before:
        raise SampleError(
            "'chosen' and 'rejected' answer no question; name it under 'prompt', or give whole conversations"
        )
    rest = {name: value for name, value in entry.items() if name not in (*SIDES, *used)}
    own_id = default_id if is_nothing(entry.get("id")) else entry["id"]
    return rest | {"id": f"{own_id}#{side}", key: [*map(_not_trained, before), answers[side][-1]]}


def _prompt(entry: Mapping[str, Any]) -> tuple[list[Any], str, tuple[str, ...]]:
    """The turns before the answers, the key for the whole conversation, and the keys that were read."""
    for key in LISTS:
        if isinstance(entry.get(key), list) and entry[key] and isinstance(entry[key][0], dict):
            return list(entry[key]), key, (key,)
    found = entry.get(_PROMPT)
    if isinstance(found, list) and found and isinstance(found[0], dict) and "role" in found[0]:
        return list(found), "messages", (_PROMPT,)
    question = question_alone(entry)
    if question is None:
        return [], "messages", ()
    asked, read = question_of(entry, question)
    used = tuple(name for name in read if name not in ("id", "image", "images"))
    return [{"role": "user", "content": asked.content}], "messages", used


def _turns_of_answer(name: str, value: Any) -> list[Any]:
    if is_nothing(value):
        raise SampleError(f"has no {name!r}, but data.pairs is true; give both answers, or set data.pairs to false")
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and isinstance(value[0], dict) and value[0].keys() & {"role", "from"}:
        return value
    return [{"role": "assistant", "content": value}]


def _text(turn: Any) -> Any:
    return turn.get("value", turn.get("content")) if isinstance(turn, dict) else None


def _not_trained(turn: Any) -> Any:
    """The turn without marks about training of its own; an answer in it is not trained on."""
    if not isinstance(turn, dict):
        return turn
    return {key: value for key, value in turn.items() if name_of(key) not in LOSS_KEYS} | {"train": False}
