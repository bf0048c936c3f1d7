"""Where an entry has its conversation: lists of turns, pairs of a question and an answer, captions.

A dialect is recognised by keys alone. docs/inputs.md has the table.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from alignkd.vlm.data.entries.no_conversation import EMPTY, no_conversation, no_turn
from alignkd.vlm.data.entries.plain import filled, is_nothing
from alignkd.vlm.data.source import Answers
from alignkd.vlm.data.turn_checks import OR_GENERATE
from alignkd.vlm.errors import SampleError

ENTRY_KEYS = frozenset({"id", "image", "images"})
LISTS = ("conversations", "messages", "conversation", "dialog", "dialogue", "turns", "chat", "texts")
ROLE_KEYS = ("from", "role")
CONTENT_KEYS = ("value", "content")
_LLAVA_KEYS = {"from", "value"}
PAIRS = (
    ("user", "assistant"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("problem", "solution"),
    ("text_input", "text_output"),
    ("input", "output"),
)
CAPTIONS = ("caption", "captions", "blip_caption", "text", "txt")
# The second part of an instruction, on a line of its own below it.
_INPUT = "input"


class RawTurn(NamedTuple):
    """A turn as an entry has it.

    Attributes:
        role: name of its speaker in the data; None if the dialect itself decides the `speaker`.
        speaker: "human" or "gpt", where the dialect decides it.
        content: a text, or parts of texts and images.
        keys: its other keys.
    """

    content: Any
    role: Any = None
    speaker: str = ""
    keys: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The conversation of an entry.

    Attributes:
        key: of the list of turns, for messages and keys that are not read; empty for pairs and captions.
        read: keys of the entry that it was made of.
        turns: as the entry has them.
        is_llava: `conversations` of `from` and `value`: images need their `<image>` in the text. In all other
            dialects, images without any mark belong to the first question.
        is_caption: an image and a text about it.
    """

    key: str
    read: frozenset[str]
    turns: tuple[RawTurn, ...]
    is_llava: bool = False
    is_caption: bool = False


def conversation_of(entry: Mapping[str, Any], answers: Answers = "given") -> Conversation:
    """The conversation of an entry of plain values.

    Args:
        answers: `missing`: a question may stand without the key of its answer.

    Raises:
        SampleError: it fits no dialect, or two; lists the entry's keys.
    """
    lists = {key: turns for key in LISTS if (turns := _listed(key, entry.get(key)))}
    if "conversations" not in lists and not is_nothing(entry.get("conversations")):
        raise SampleError(no_conversation(entry))
    if lists:
        return _of_lists(lists, answers)
    pairs = list(_pairs(entry))
    if len(pairs) > 1:
        first, second = (" and ".join(map(repr, pair)) for pair in pairs[:2])
        raise SampleError(f"has {first}, but also {second}; keep one question and one answer")
    if pairs:
        return _of_pair(entry, *pairs[0])
    if answers == "missing" and (question := question_alone(entry)) is not None:
        asked, read = question_of(entry, question)
        empty = {answer for key, answer in PAIRS if key == question}
        return Conversation(key="", read=read | empty, turns=(asked,))
    if entry.get("conversations") is not None:
        raise SampleError(EMPTY)
    return _of_caption(entry)


def _listed(key: str, value: Any) -> list[Any]:
    """The list of turns under a key, empty if there is none. A text may be JSON, an object may be columns."""
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        value = _rows(value)
    if not isinstance(value, list) or not value:
        return []
    # under the other keys, a list of texts for example is not a conversation
    return value if key == "conversations" or isinstance(value[0], dict) else []


def _rows(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The objects of an object of equally long columns; none if their lengths differ."""
    if len({len(column) for column in columns.values()}) != 1:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _parsed(text: str) -> Any:
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_lists(lists: Mapping[str, list[Any]], answers: Answers) -> Conversation:
    key, *others = lists
    for other in others:
        if lists[other] != lists[key]:
            raise SampleError(f"both {key!r} and {other!r} hold a conversation; keep one of the two")
    turns = tuple(turn for number, element in enumerate(lists[key]) for turn in _turns_in(number, element, answers))
    first = lists[key][0]
    is_llava = key == "conversations" and first.get("from") is not None and first.get("value") is not None
    return Conversation(key=key, read=ENTRY_KEYS | set(lists), turns=turns, is_llava=is_llava)


def _turns_in(number: int, element: Any, answers: Answers) -> Sequence[RawTurn]:
    """The turn of an element, or the two of a pair, or the question alone."""
    if not isinstance(element, dict):
        raise SampleError(no_turn(number, element))
    if element.keys() == _LLAVA_KEYS and None not in element.values():  # the shortest way for most data
        return (RawTurn(role=element["from"], content=element["value"]),)
    found = filled(element)
    role, content = _one_of(number, found, ROLE_KEYS), _one_of(number, found, CONTENT_KEYS)
    if role is not None:
        return (RawTurn(role=role, content=content, keys=_without(found, (*ROLE_KEYS, *CONTENT_KEYS))),)
    if (pair := next(_pairs(found), None)) is None:
        key = question_alone(found, in_list=True)
        if answers == "given" or key is None:
            raise SampleError(no_turn(number, found) + _to_answer(found, in_list=True))
        content = _one_text(f"turn {number}: {key!r}", found[key])
        return (RawTurn(speaker="human", content=content, keys=_without(found, (key,))),)
    question, answer = (_one_text(f"turn {number}: {key!r}", found[key]) for key in pair)
    return (
        RawTurn(speaker="human", content=question),
        RawTurn(speaker="gpt", content=answer, keys=_without(found, pair)),
    )


def _without(turn: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in turn.items() if key not in keys}


def _one_of(number: int, turn: Mapping[str, Any], keys: tuple[str, str]) -> Any:
    """The value of the one of two keys that the turn has; None if it has neither."""
    first, second = keys
    if first not in turn:
        return turn.get(second)
    if second in turn and turn[first] != turn[second]:
        raise SampleError(f"turn {number} has {first!r} and {second!r}, which differ; keep one of the two")
    return turn[first]


def _pairs(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for question, answer in PAIRS:
        if entry.get(question) is None or entry.get(answer) is None:
            continue
        if question != _INPUT or entry.get("instruction") is None:
            yield question, answer


def _of_pair(entry: Mapping[str, Any], question: str, answer: str) -> Conversation:
    asked, read = question_of(entry, question)
    answered = RawTurn(speaker="gpt", content=_one_text(repr(answer), entry[answer]))
    return Conversation(key="", read=read | {answer}, turns=(asked, answered))


def question_of(entry: Mapping[str, Any], key: str) -> tuple[RawTurn, frozenset[str]]:
    """The question under a key, with the second part of an instruction; and the keys of the entry that it read."""
    asked = _one_text(repr(key), entry[key])
    if key != "instruction":
        return RawTurn(speaker="human", content=asked), ENTRY_KEYS | {key}
    if not is_nothing(more := entry.get(_INPUT)):
        if not isinstance(asked, str) or not isinstance(more, str):
            raise SampleError(f"{key!r} and {_INPUT!r} are not both texts; write them as texts")
        asked = f"{asked}\n{more}"
    return RawTurn(speaker="human", content=asked), ENTRY_KEYS | {key, _INPUT}


def question_alone(entry: Mapping[str, Any], *, in_list: bool = False) -> str | None:
    """The key of the one question that stands without its answer; None if there is none, or several.

    Args:
        in_list: the entry is an element of a list of turns, where `user` is a question; elsewhere it may be the author
            of a picture.
    """
    found = list(dict.fromkeys(key for key, _ in PAIRS if not is_nothing(entry.get(key))))
    if _INPUT in found and "instruction" in found:
        found.remove(_INPUT)
    if "user" in found and not in_list:
        found.remove("user")
    return found[0] if len(found) == 1 else None


def _to_answer(entry: Mapping[str, Any], *, in_list: bool = False) -> str:
    """The end of a message about an entry that has a question only; empty for others."""
    key = question_alone(entry, in_list=in_list)
    return "" if key is None else f"; {key!r} has no answer: give it one, {OR_GENERATE}"


def _one_text(where: str, value: Any) -> Any:
    """A question or an answer: a text, or parts. A list of texts is a choice of answers, not parts of one.

    Raises:
        SampleError: several texts, turns, or neither text nor parts.
    """
    if not isinstance(value, str | list | dict):
        raise SampleError(f"{where} is a {type(value).__name__}, expected a text; write it as a text")
    if not isinstance(value, list):
        return value
    if any(isinstance(part, dict) and "role" in part for part in value):
        raise SampleError(f"{where} is a list of turns; write all turns of the sample as 'messages'")
    if value and all(isinstance(part, str) for part in value):
        if len(value) > 1:
            raise SampleError(f"{where} has {len(value)} texts; keep one, as a text")
        return value[0]
    return value


def _of_caption(entry: Mapping[str, Any]) -> Conversation:
    captions: dict[str, str] = {}
    for key in CAPTIONS:
        value = entry.get(key)
        if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
            raise SampleError(f"{key!r} has {len(value)} captions; keep one, as a text")
        caption = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(caption, str) and caption.strip():
            captions[key] = caption
    if not captions:
        raise SampleError(no_conversation(entry) + _to_answer(entry))
    if len(set(captions.values())) > 1:
        raise SampleError(f"{' and '.join(map(repr, captions))} hold captions that differ; keep one of them")
    # `user` may be the author of a picture
    for question, answer in PAIRS:
        if question != "user" and not is_nothing(entry.get(question)):
            raise SampleError(
                f"{question!r} stands beside {next(iter(captions))!r} without its answer; name the answer {answer!r}, "
                "or remove the question to train on the caption"
            )
    turns = RawTurn(speaker="human", content=""), RawTurn(speaker="gpt", content=next(iter(captions.values())))
    return Conversation(key="", read=ENTRY_KEYS | set(captions), turns=turns, is_caption=True)
