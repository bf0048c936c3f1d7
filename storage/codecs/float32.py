"""`float32`: the values as they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs.base import Shape


class Float32:
    """Exact for float32 and float16 input; decodes to float32."""

    name = "float32"
    part_names = ("",)
    dtype = np.dtype("<f4")

    def parts(self, row_shape: Shape) -> dict[str, tuple[np.dtype[Any], Shape]]:
        return {"": (self.dtype, row_shape)}

    def encode(self, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {"": values.astype(self.dtype, copy=False)}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return parts[""]
