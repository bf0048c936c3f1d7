"""A codec to copy from: whole thousandths in int16."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape
from alignkd.storage.errors import RecordError

UNIT = 1000
LARGEST = 32.767


class Milli:
    """q = rint(x * 1000) as int16; x' = q / 1000. |x' - x| <= 0.00051. Values up to 32.767."""

    name = "milli"
    targets = frozenset({"attention"})
    plain = False
    part_names = ("",)
    shared_parts: frozenset[str] = frozenset()
    dtype = np.dtype("<i2")

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (self.dtype, shape)}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Raises:
        RecordError: a value is beyond 32.767.
        """
        if not np.abs(values).max(initial=0) <= LARGEST:
            raise RecordError(f"milli holds values up to {LARGEST}, found {np.abs(values).max():.6g}; store float16")
        return {"": np.rint(values.astype(np.float32) * UNIT).astype(self.dtype)}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return parts[""].astype(np.float32) / np.float32(UNIT)

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.full(parts[""].shape, 0.00051, np.float32)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return int(np.count_nonzero(parts[""] == -32768))

    def describe(self) -> dict[str, Any]:
        return {"codec_id": self.name, "formula": "q / 1000", "error_bound": "0.00051"}
