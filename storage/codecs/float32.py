"""`float32`: the values without any change."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape


class Float32:
    """Exact for float32 and float16 input."""

    name = "float32"
    targets = frozenset({"attention", "vision_top", "vision_all", "hidden", "unit"})
    plain = True
    part_names = ("",)
    shared_parts: frozenset[str] = frozenset()
    dtype = np.dtype("<f4")

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (self.dtype, shape)}

    def encode(self, values: NDArray[Any]) -> Parts:
        return {"": values.astype(self.dtype, copy=False)}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return parts[""]

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.zeros(parts[""].shape, np.float32)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return int(np.count_nonzero(~np.isfinite(parts[""])))

    def describe(self) -> dict[str, Any]:
        return {"codec_id": self.name, "formula": "x", "error_bound": "0"}
