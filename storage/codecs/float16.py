"""`float16`: rounded to 11 significant bits; smallest step 6e-8, largest value 65504."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape, rounding_bound
from alignkd.storage.errors import RecordError


class Float16:
    """Relative error at most 2^-11 from 6.1e-5 to 65504, absolute error at most 2^-25 below."""

    name = "float16"
    targets = frozenset({"attention", "vision_top", "vision_all", "hidden", "unit"})
    plain = True
    part_names = ("",)
    shared_parts: frozenset[str] = frozenset()
    dtype = np.dtype("<f2")

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (self.dtype, shape)}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Round to nearest even.

        Raises:
            RecordError: a finite value would become infinite.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        if _num_infinite_or_nan(stored):
            worst = float(np.abs(values).max())
            raise RecordError(f"float16 holds values up to 65504, found {worst:.6g}; store float32 instead")
        return {"": stored}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return parts[""].astype(np.float32)

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return rounding_bound(parts[""], 2**-11, 2**-25)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return _num_infinite_or_nan(parts[""])

    def describe(self) -> dict[str, Any]:
        return {"codec_id": self.name, "formula": "x", "error_bound": "max(|x| * 2^-11, 2^-25)"}


def _num_infinite_or_nan(values: NDArray[np.float16]) -> int:
    # by their bits, which is ten times as fast as np.isfinite: all bits of the exponent are set
    exponents = np.ascontiguousarray(values).view(np.uint16) & np.uint16(0x7C00)
    return int(np.count_nonzero(exponents == 0x7C00))
