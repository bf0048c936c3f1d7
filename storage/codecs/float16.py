"""`float16`: rounded to 11 significant bits; smallest step 6e-8, largest value 65504."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs.base import Shape
from storage.errors import RecordError


class Float16:
    """Relative error at most 2^-11 from 6.1e-5 to 65504, absolute error at most 3e-8 below.

    Decodes to float16: widening is left to the device that uses the values.
    """

    name = "float16"
    part_names = ("",)
    dtype = np.dtype("<f2")

    def parts(self, row_shape: Shape) -> dict[str, tuple[np.dtype[Any], Shape]]:
        return {"": (self.dtype, row_shape)}

    def encode(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Round to nearest even.

        Raises:
            RecordError: a finite value would become infinite.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype, copy=False)
        if not np.isfinite(stored).all():
            worst = float(np.abs(values).max())
            raise RecordError(f"float16 holds values up to 65504, found {worst:.6g}; store float32 instead")
        return {"": stored}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float16]:
        return parts[""]
