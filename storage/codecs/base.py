"""What every codec of a float target offers."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Parts = dict[str, NDArray[Any]]
# part -> dtype and shape
PartShapes = dict[str, tuple[np.dtype[Any], Shape]]


def part_column(field: str, part: str) -> str:
    """Name of the stored array that holds a part of a field."""
    return f"{field}_{part}" if part else field


class Codec(Protocol):
    """Turns float values into one or more stored arrays and back, along the LAST axes; leading axes are free.

    The part named "" has the shape of the values; others (a scale, say) are stored beside it as `<field>_<part>`.
    To add a codec: one file with a class like this, one line in `storage/codecs/__init__.py`.
    """

    @property
    def name(self) -> str:
        """The name in the manifest."""

    @property
    def targets(self) -> frozenset[str]:
        """What it may store: `attention`, `vision_top`, `vision_all`, `hidden`."""

    @property
    def plain(self) -> bool:
        """Whether the part "" is the float array itself; a Record then holds that, not an EncodedArray."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the stored parts."""

    @property
    def shared_parts(self) -> frozenset[str]:
        """Parts that belong to all rows (the first axis of the values) at once: row slicing keeps them whole."""

    def parts(self, shape: Shape) -> PartShapes:
        """Each stored part -> dtype and shape, for values of `shape`."""

    def encode(self, values: NDArray[Any]) -> Parts:
        """Stored parts of finite float values.

        Raises:
            RecordError: the codec cannot hold these values.
        """

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The values again, on the host; for tools and tests."""

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        """Stored numbers that `encode` never makes: they decode to NaN, infinity or beyond the scale."""

    def describe(self) -> dict[str, Any]:
        """JSON-able: `codec_id`, the decoding `formula` and the `error_bound`, for readers without this package."""
