"""Which answers an entry excludes from training."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignkd.vlm.data.entries.keys import LOSS_KEYS, TRAINED, name_of, shown
from alignkd.vlm.errors import SampleError

_STEP = "an answer is trained on with weight 1, or not at all; write 1 or 0, or remove the sample"


def trained_turns(
    entry: Mapping[str, Any], keys: Sequence[Mapping[str, Any]], speakers: Sequence[str]
) -> tuple[bool, ...]:
    """For each turn whether it is trained on; True for turns that are no answers.

    Args:
        entry: its own keys about training may hold one value per turn.
        keys: of each turn, beside its text.
        speakers: of each turn.

    Raises:
        SampleError: a weight other than 0 and 1, a question that would be trained on, or values that differ.
    """
    columns = _columns(entry, len(keys))
    if not columns and not any(keys):
        return (True,) * len(keys)
    return tuple(
        _is_trained(number, speaker, [*own.items(), *((key, values[number]) for key, values in columns.items())])
        for number, (own, speaker) in enumerate(zip(keys, speakers, strict=True))
    )


def _columns(entry: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """Keys of the entry with one value per turn."""
    found = {
        key: value for key, value in entry.items() if isinstance(value, list) and value and name_of(key) in LOSS_KEYS
    }
    for key, values in found.items():
        if len(values) != count:
            raise SampleError(
                f"key {shown(key)} has {len(values)} values, the conversation {count} turns; give one per turn"
            )
    return found


def _is_trained(number: int, speaker: str, keys: Iterable[tuple[str, Any]]) -> bool:
    found: dict[bool, str] = {}
    for key, value in keys:
        name = name_of(key)
        if name not in LOSS_KEYS or value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise SampleError(f"turn {number}: key {shown(key)} is {shown(value)}; {_STEP}")
        if speaker == "gpt":
            found[bool(value) == (name in TRAINED)] = key
        elif value and name in TRAINED:
            raise SampleError(
                f"turn {number}: key {shown(key)} ({value}) is of a {speaker} turn, but only answers are trained on; "
                "write 0, or remove the key"
            )
    if len(found) > 1:
        raise SampleError(
            f"turn {number}: key {shown(found[True])} selects it for training, key {shown(found[False])} excludes it; "
            "keep one"
        )
    return False not in found
