"""`bfloat16`: the upper half of a float32's bits, rounded; 8 significant bits, the range of float32."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape, rounding_bound
from alignkd.storage.errors import RecordError

LARGEST = float.fromhex("0x1.FEp127")  # 3.39e38
_INFINITY = 0x7F80  # bits of +inf; greater magnitudes are NaN


class Bfloat16:
    """Bit patterns as uint16, rounded to nearest even; a device reads them as its own bfloat16.

    x' = float32 with the bits q << 16. |x' - x| <= |x| * 2^-8, and <= 2^-134 below the normal range (1.2e-38).
    The stored dtype is an integer because numpy has no bfloat16.
    """

    name = "bfloat16"
    targets = frozenset({"attention", "vision_top", "vision_all", "hidden"})
    plain = False
    part_names = ("",)
    shared_parts: frozenset[str] = frozenset()
    dtype = np.dtype("<u2")

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (self.dtype, shape)}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Round to nearest even.

        Raises:
            RecordError: a value is NaN or infinite, or would become infinite.
        """
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        rounded >>= 16
        stored = rounded.astype(self.dtype).reshape(values.shape)
        if self.num_invalid({"": stored}):
            worst = float(np.abs(values).max())
            raise RecordError(f"bfloat16 holds values up to {LARGEST:.6g}, found {worst:.6g}; store float32 instead")
        return {"": stored}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return (parts[""].astype(np.uint32) << 16).view(np.float32)

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return rounding_bound(self.decode(parts), 2**-8, 2**-134)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return int(np.count_nonzero((parts[""] & 0x7FFF) >= _INFINITY))

    def describe(self) -> dict[str, Any]:
        return {
            "codec_id": self.name,
            "formula": "float32 with the bits q << 16",
            "error_bound": "max(|x| * 2^-8, 2^-134)",
        }
