"""What every codec of a float target offers."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


def part_column(field: str, part: str) -> str:
    """Name of the stored array that holds a part of a field."""
    return f"{field}_{part}" if part else field


class Codec(Protocol):
    """Turns rows of values into one or more stored arrays with the same number of rows, and back.

    A part named "" is the array itself; others (a scale, say) are stored beside it as `<field>_<part>`.
    """

    @property
    def name(self) -> str:
        """The name in the manifest."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the stored parts."""

    def parts(self, row_shape: Shape) -> dict[str, tuple[np.dtype[Any], Shape]]:
        """Each stored part -> dtype and shape of one row."""

    def encode(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Stored parts of float rows [rows, *row_shape].

        Raises:
            RecordError: the codec cannot hold these values.
        """

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The float rows again, in the cheapest dtype that holds them."""
