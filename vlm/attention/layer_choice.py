"""A choice of decoder layers as a configuration writes it: their numbers, or a band of the decoder's depth."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from alignkd.vlm.errors import InputError
from alignkd.vlm.settings import COMPLETE, described

_BAND = re.compile(r"(\d{1,3})%\s*-\s*(\d{1,3})%")
MAX_CHOSEN = 1 << 10


def checked_choice(value: Any) -> Any:
    """Refuse in one line what is neither numbers nor a band: a union has one error for each of its kinds."""
    problem = _problem_of_band(value) if isinstance(value, str) else _problem_of_numbers(value)
    if problem is not None:
        raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})
    return value if isinstance(value, str) else tuple(value)


def _problem_of_numbers(value: Any) -> str | None:
    if not isinstance(value, list | tuple) or not value or len(value) > MAX_CHOSEN:
        found = "an empty list" if value in ([], ()) else described(value)
        return f"expected a list of decoder layers such as [0, 1], or a band such as 30%-70%, found {found}"
    wrong = [number for number in value if type(number) is not int or number < 0]
    if wrong:
        return f"expected numbers of decoder layers from 0, found {described(wrong[0])}"
    if list(value) != sorted(set(value)):
        return f"expected each decoder layer once, in rising order, found {list(value)}"[:200]
    return None


def _problem_of_band(text: str) -> str | None:
    band = _BAND.fullmatch(text)
    if band is None:
        return f"expected a list of decoder layers such as [0, 1], or a band such as 30%-70%, found {described(text)}"
    low, high = int(band[1]), int(band[2])
    return None if low < high <= 100 else f"expected a band that rises within 0% and 100%, found {low}%-{high}%"


LayerChoice = Annotated[
    tuple[int, ...] | str, BeforeValidator(checked_choice), Field(title="list of layers, or a band such as `30%-70%`")
]


def chosen_layers(
    choice: tuple[int, ...] | str, *, num_layers: int, attention_layers: Sequence[int], key: str
) -> tuple[int, ...]:
    """The numbers of the chosen decoder layers, from 0, rising.

    A band `a%-b%` of L layers holds the layers l with a <= 100 l / L < b that have attention, so that neighbouring
    bands share no layer and `0%-100%` is every layer. `30%-70%` is the band of CompoDistill (arXiv 2510.12184): layers
    10 to 22 of 32, and 8 to 16 of 24. The authors' code has tables in its place (11 to 17 and 8 to 14); these are
    written as lists.

    Args:
        choice: a valid `LayerChoice`.
        num_layers: L, layers of the decoder.
        attention_layers: numbers of those that have attention.
        key: the configuration key, for messages.

    Raises:
        InputError: a layer that the decoder does not have or that has no attention, or a band without any.
    """
    if isinstance(choice, str):
        band = _BAND.fullmatch(choice)
        assert band is not None, choice
        low, high = int(band[1]) * num_layers, int(band[2]) * num_layers
        found = tuple(number for number in attention_layers if low <= 100 * number < high)
        if not found:
            raise InputError(
                f"{key}: no layer of the band {choice} of {num_layers} decoder layers has attention; layers with "
                f"attention are {shown_layers(attention_layers)}"
            )
        return found
    for number in choice:
        if number not in attention_layers:
            problem = "has no attention" if number < num_layers else f"does not exist, there are {num_layers}"
            raise InputError(
                f"{key}: decoder layer {number} {problem}; layers with attention are {shown_layers(attention_layers)}"
            )
    return choice


def shown_layers(numbers: Sequence[int]) -> str:
    """Numbers of layers for messages, runs of three or more as `0 to 31`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [
        part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(one) for one in run])
    ]
    return ", ".join(parts)
