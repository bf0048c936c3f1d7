"""The key `generated` of a turn: which answers a model wrote, and how."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkd.vlm.data.entries.keys import GENERATED, name_of, shown
from alignkd.vlm.data.entries.plain import filled
from alignkd.vlm.data.turns import Generated
from alignkd.vlm.errors import SampleError

_STEP = "write it as `alignkd generate` does, or remove the key"


def generated_turns(keys: Sequence[Mapping[str, Any]], speakers: Sequence[str]) -> tuple[Generated | None, ...]:
    """How the answer of each turn was written; None for turns that no model wrote.

    The value is an object of `by`, `logprob`, `tokens` and `finished`, or true if none of them is known. Null and false
    mean that no model wrote the answer.

    Args:
        keys: of each turn, beside its text.
        speakers: of each turn.

    Raises:
        SampleError: another value, a turn that is no answer, or an answer before the first question.
    """
    if not any(keys):
        return (None,) * len(keys)
    found = tuple(map(_generated, range(len(keys)), keys, speakers))
    first = next((number for number, how in enumerate(found) if how is not None), None)
    if first is not None and "human" not in speakers[:first]:
        raise SampleError(f"turn {first}: a model wrote this answer, but there is no question before it; {_STEP}")
    return found


def _generated(number: int, keys: Mapping[str, Any], speaker: str) -> Generated | None:
    given = {key: value for key, value in keys.items() if name_of(key) == GENERATED and value not in (None, False)}
    if not given:
        return None
    (key, value), *others = given.items()
    if others:
        raise SampleError(f"turn {number} has the keys {shown(key)} and {shown(others[0][0])}; keep one of the two")
    where = f"turn {number}: key {shown(key)}"
    if speaker != "gpt":
        raise SampleError(f"{where} is of a {speaker} turn, but only answers are written by a model; remove the key")
    if value is True:
        return Generated()
    if not isinstance(value, dict):
        raise SampleError(f"{where} is {shown(value)}, expected an object or true; {_STEP}")
    return _of_object(where, filled(value))


def _of_object(where: str, value: Mapping[str, Any]) -> Generated:
    if unknown := [key for key in value if key not in _FIELDS]:
        raise SampleError(f"{where} has {shown(unknown[0])}, expected only {', '.join(_FIELDS)}; {_STEP}")
    for name, item in value.items():
        is_valid, expected = _FIELDS[name]
        if not is_valid(item):
            raise SampleError(f"{where}: {name!r} is {shown(item)}, expected {expected}; {_STEP}")
    return Generated(**value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "by": (lambda value: isinstance(value, str) and bool(value.strip()), "the name of a model"),
    "logprob": (
        lambda value: _is_number(value) and value <= 0 and math.isfinite(value),
        "a finite number of 0 or less",
    ),
    "tokens": (lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "0 or more"),
    "finished": (lambda value: isinstance(value, bool), "true or false"),
}
