"""Why an entry, or an element of its list of turns, fits no dialect, and what to do."""

import difflib
from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import one_line

EMPTY = "empty conversation; give at least one human and one gpt turn"
_READ = (
    "read are 'conversations' or 'messages' (turns of 'from' and 'value', or 'role' and 'content'), 'texts', pairs "
    "such as 'question' and 'answer', and a 'caption' with an image"
)


def no_conversation(entry: Mapping[str, Any]) -> str:
    """Why an entry without a conversation cannot be used."""
    value = entry.get("conversations")
    if isinstance(value, str) and value.strip():
        return (
            "'conversations' is a text that is not a list in JSON, expected a list of turns; write one object per turn"
        )
    if isinstance(value, dict):
        return f"'conversations' is an object with {_names(value)}, expected a list of turns; write one object per turn"
    if value not in (None, [], ""):
        return f"'conversations' is {one_line(repr(value))[:60]}, expected a list of turns"
    if (near := difflib.get_close_matches("conversations", list(entry), n=1)) not in ([], ["conversations"]):
        return f"no 'conversations', but {near[0]!r}; call it 'conversations'"
    return f"no conversation among the keys ({_names(entry)}); {_READ}"


def no_turn(number: int, turn: Any) -> str:
    """Why an element of a list of turns cannot be used."""
    if not isinstance(turn, dict):
        return f"turn {number} is not an object; write 'from' and 'value', or 'role' and 'content'"
    return f"turn {number} has the keys {_names(turn)}; write 'from' and 'value', or 'role' and 'content'"


def _names(entry: Mapping[str, Any]) -> str:
    shown = ", ".join(one_line(repr(key))[:40] for key in list(entry)[:6])
    return f"{shown}, ..." if len(entry) > 6 else shown or "none"
