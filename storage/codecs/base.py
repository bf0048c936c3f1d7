"""The interface of a codec of float targets."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Parts = dict[str, NDArray[Any]]
# part -> dtype and shape
PartShapes = dict[str, tuple[np.dtype[Any], Shape]]

# column -> the record's rows of it
ReadRows = Callable[[str], NDArray[Any]]


def part_column(field: str, part: str) -> str:
    """Name of the stored array that holds a part of a field."""
    return f"{field}_{part}" if part else field


class Codec(Protocol):
    """Turns float values into one or more stored arrays and back, along the LAST axes; leading axes are free.

    The part named "" has the shape of the values. Other parts (a scale, for example) are stored as `<field>_<part>`.
    """

    @property
    def name(self) -> str:
        """Name in the manifest."""

    @property
    def targets(self) -> frozenset[str]:
        """The targets that it may store: `attention`, `vision_top`, `vision_all`, `hidden`; `unit` for
        values in [-1, 1]."""

    @property
    def plain(self) -> bool:
        """Whether the part "" is the float array itself; a Record then holds this array, not an EncodedArray."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the stored parts."""

    @property
    def shared_parts(self) -> frozenset[str]:
        """Parts that belong to all rows (the first axis of the values) at once: row slicing keeps them whole."""

    def parts(self, shape: Shape) -> PartShapes:
        """Each stored part -> dtype and shape, for values of `shape`."""

    def encode(self, values: NDArray[Any]) -> Parts:
        """Encode finite float values.

        Raises:
            RecordError: the codec cannot hold these values.
        """

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Decode on the host, float32; for tools and tests."""

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Largest possible |decoded - exact| of each value, float32, in the shape of the values."""

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        """Count stored numbers that `encode` never makes: they decode to NaN, infinity or beyond the scale."""

    def describe(self) -> dict[str, Any]:
        """JSON-able: `codec_id`, the decoding `formula` and the `error_bound`, for readers without this package."""


# turns a bound relative to the exact value into one relative to the rounded value
_FROM_ROUNDED = np.float32(1 + 2**-7)


def rounding_bound(rounded: NDArray[Any], step: float, smallest: float) -> NDArray[np.float32]:
    """Error bound of values that were rounded to a float format.

    Args:
        step: half the distance between neighbours, relative to the value.
        smallest: the bound below the format's normal range.
    """
    relative = np.abs(rounded.astype(np.float32, copy=False)) * np.float32(step) * _FROM_ROUNDED
    bound: NDArray[np.float32] = np.maximum(relative, np.float32(smallest))
    return bound
