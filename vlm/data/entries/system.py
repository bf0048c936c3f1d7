"""The one system prompt of a sample: from its turns, from a key of the entry, or from the user."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignkd.vlm.data.entries.keys import SYSTEM_KEYS, name_of, shown
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError


def with_system(turns: Sequence[Turn], entry: Mapping[str, Any], default: str | None) -> tuple[Turn, ...]:
    """The turns with at most one system prompt, at the start.

    Prompts of white space count as none. The same prompt in several places counts once.

    Args:
        entry: may hold a prompt under `system`, `system_prompt` or `system_message`.
        default: the prompt of entries that have none.

    Raises:
        SampleError: two different prompts, one that is not at the start, or one that is not a text.
    """
    first = next((number for number, turn in enumerate(turns) if turn.speaker != "system"), len(turns))
    for number, turn in enumerate(turns[first:], first):
        if turn.speaker == "system":
            raise SampleError(f"turn {number} is a system prompt; it may only come first, move it there or remove it")
    found = dict.fromkeys([*(turn.value for turn in turns[:first] if turn.value.strip()), *_of_entry(entry)])
    if len(found) > 1:
        one, other = list(found)[:2]
        raise SampleError(f"two different system prompts, {shown(one)} and {shown(other)}; keep one of the two")
    if not found and default is not None and default.strip():
        found = {default: None}
    return (*(Turn("system", text) for text in found), *turns[first:])


def _of_entry(entry: Mapping[str, Any]) -> list[str]:
    prompts = []
    for key, value in entry.items():
        if name_of(key) not in SYSTEM_KEYS or value is None or value is False or value in ([], {}):
            continue
        if not isinstance(value, str):
            raise SampleError(f"key {shown(key)} is {shown(value)}, expected the text of a system prompt")
        if value.strip():
            prompts.append(value)
    return prompts
