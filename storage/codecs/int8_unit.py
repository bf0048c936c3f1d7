"""`int8_unit`: cosines in 8 bits, with one fixed step for all values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape
from alignkd.storage.errors import RecordError

UNIT_STEPS = 127
# arithmetic in float32 may give this instead of 1
LARGEST = 1.0001
# half a step, and what is cut off above 1
_BOUND = np.float32(0.50001 / UNIT_STEPS + LARGEST - 1)


class Int8Unit:
    """Values in [-1, 1] of any shape: q int8 of the same shape.

    q = rint(127 * x), at most 127 in magnitude; x' = q / 127. |x' - x| <= 0.50001 / 127 + 0.0001.
    """

    name = "int8_unit"
    targets = frozenset({"unit"})
    plain = False
    part_names = ("",)
    shared_parts: frozenset[str] = frozenset()

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (np.dtype("i1"), shape)}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Raises:
        RecordError: a value is not a cosine: above 1.0001 in magnitude, or NaN.
        """
        values = values.astype(np.float32, copy=False)
        smallest, largest = values.min(initial=0), values.max(initial=0)
        if not (smallest >= -LARGEST and largest <= LARGEST):
            raise RecordError(
                f"int8_unit holds values in -1..1, found {smallest:.6g}..{largest:.6g}; store float16 instead"
            )
        steps = np.rint(values * np.float32(UNIT_STEPS))
        return {"": np.clip(steps, -UNIT_STEPS, UNIT_STEPS, out=steps).astype(np.int8)}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = parts[""] * np.float32(1 / UNIT_STEPS)
        return values

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.full(parts[""].shape, _BOUND, np.float32)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return int(np.count_nonzero(parts[""] == -UNIT_STEPS - 1))

    def describe(self) -> dict[str, Any]:
        return {"codec_id": self.name, "formula": "q / 127", "error_bound": "0.50001 / 127 + 0.0001"}
