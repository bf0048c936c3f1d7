"""Entries in other programs' layouts, and how to convert them to human and gpt turns."""

import difflib
from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import one_line

EMPTY = "empty conversation; give at least one human and one gpt turn"
RENAME = "write 'from' and 'value' for 'role' and 'content', 'human' for user, 'gpt' for assistant"
_LISTS_OF_TURNS = ("messages", "conversation", "dialog", "dialogue", "turns", "chat")
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("problem", "solution"),
    ("text_input", "text_output"),
)
_CAPTIONS = ("caption", "captions", "text", "blip_caption")


def no_conversation(entry: Mapping[str, Any]) -> str:
    """Why an entry without a list of turns under 'conversations' cannot be used."""
    value = entry.get("conversations")
    if isinstance(value, str) and value.strip():
        return "'conversations' is a text, expected a list of turns; if it is JSON within JSON, parse it"
    if isinstance(value, dict):
        return f"'conversations' is an object with {_names(value)}, expected a list of turns; write one object per turn"
    if value not in (None, [], ""):
        return f"'conversations' is {one_line(repr(value))[:60]}, expected a list of turns"
    return EMPTY if "conversations" in entry else _without(entry)


def _without(entry: Mapping[str, Any]) -> str:
    for key in _LISTS_OF_TURNS:
        if isinstance(turns := entry.get(key), list) and turns:
            step = f"; {RENAME}" if isinstance(turns[0], dict) and "role" in turns[0] else ""
            return f"no 'conversations', but {key!r}; call it 'conversations'{step}"
    for question, answer in _PAIRS:
        if question in entry and answer in entry:
            return f"no 'conversations', but {question!r} and {answer!r}; write them as a human and a gpt turn"
    if (near := difflib.get_close_matches("conversations", list(entry), n=1)) != []:
        return f"no 'conversations', but {near[0]!r}; call it 'conversations'"
    for key in _CAPTIONS:
        if isinstance(entry.get(key), str):
            return f"no 'conversations', but {key!r}; write it as the gpt turn after a human one"
    return f"empty conversation: no 'conversations' among the keys ({_names(entry)}); give a human and a gpt turn"


def no_turn(number: int, turn: Any) -> str:
    """Why an element of 'conversations' cannot be used."""
    if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
        return f"turn {number} has 'role' and 'content'; {RENAME}"
    return f"turn {number} is not an object with the texts 'from' and 'value'"


def _names(entry: Mapping[str, Any]) -> str:
    shown = ", ".join(one_line(repr(key))[:40] for key in list(entry)[:6])
    return f"{shown}, ..." if len(entry) > 6 else shown or "none"
