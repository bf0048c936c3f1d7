"""`int8_unit`: 8 bits per value of -1 to 1, for cosines; the same steps everywhere, so that there is no scale."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape
from alignkd.storage.codecs.half_scale import INT8_STEPS, STEP_BOUND, invalid_int8
from alignkd.storage.errors import RecordError

# a cosine in 16 bits may be this instead of 1
LARGEST = 1.001
_BOUND = np.float32(STEP_BOUND / INT8_STEPS)


class Int8Unit:
    """Values [...] of -1 to 1: q = rint(127 x) as int8, at most 127 in magnitude; x' = q / 127.

    |x' - x| <= 0.50001 / 127. Values up to 1.001 in magnitude.
    """

    name = "int8_unit"
    targets = frozenset({"cosines"})
    plain = False
    part_names = ("",)
    shared_parts: frozenset[str] = frozenset()
    dtype = np.dtype("i1")

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (self.dtype, shape)}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Raises:
        RecordError: a value is beyond 1.001 or NaN.
        """
        values = values.astype(np.float32, copy=False)
        largest = np.abs(values).max(initial=0)
        if not largest <= LARGEST:
            raise RecordError(f"int8_unit holds values of -1 to 1, found {largest:.6g}; store float16 instead")
        steps = np.rint(values * np.float32(INT8_STEPS)).clip(-INT8_STEPS, INT8_STEPS)
        return {"": steps.astype(self.dtype)}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = parts[""] * np.float32(1 / INT8_STEPS)
        return found

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.full(parts[""].shape, _BOUND)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return invalid_int8(parts[""])

    def describe(self) -> dict[str, Any]:
        return {"codec_id": self.name, "formula": "q / 127", "error_bound": "0.50001 / 127"}
