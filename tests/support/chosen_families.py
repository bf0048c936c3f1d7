"""Which families a test runs for: the nine always, the others with `pytest --all-families`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from tiny_families import NINE


def nine_first(names: Iterable[str], *, also: Iterable[str] = ()) -> list[Any]:
    """Arguments of `parametrize`: families beyond the nine and `also` have the marker `more_families`."""
    return chosen(names, lambda name: name in {*NINE, *also})


def chosen(values: Iterable[Any], always: Callable[[Any], bool]) -> list[Any]:
    """Arguments of `parametrize`: values that are not for every run have the marker `more_families`."""
    more = pytest.mark.more_families
    return [
        value if always(value) else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=more)
        for value in values
    ]
