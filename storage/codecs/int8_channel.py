"""`int8_channel`: 8 bits per value and one scale per channel over all tokens of an image.

Vision embeddings have a few outlier channels, which would use up all steps of a scale per token.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape
from alignkd.storage.codecs.half_scale import DTYPE, STEP_BOUND, int8_scale, invalid_int8, invalid_scales, to_int8


class Int8Channel:
    """Values [..., tokens, channels]: q int8 of the same shape and `scale` float16 [..., channels].

    scale = max over tokens of |x| / 127, rounded up to float16; q = rint(x / scale); x' = q * scale.
    |x' - x| <= 0.50001 * scale, scale <= max |x| / 127 * (1 + 2^-10) + 2^-24. Values up to 8.3e6.
    """

    name = "int8_channel"
    targets = frozenset({"vision_top", "vision_all"})
    plain = False
    part_names = ("", "scale")
    shared_parts = frozenset({"scale"})

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (np.dtype("i1"), shape), "scale": (DTYPE, (*shape[:-2], shape[-1]))}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Raises:
        RecordError: a channel reaches above 8.3e6.
        """
        values = values.astype(np.float32, copy=False)
        # two reductions instead of one over |x|: no copy of the values
        largest = np.maximum(values.max(-2, initial=0), -values.min(-2, initial=0))
        scale = int8_scale(largest, self.name)
        return {"": to_int8(values, scale[..., None, :]), "scale": scale}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return parts[""] * parts["scale"].astype(np.float32)[..., None, :]

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        bound = np.float32(STEP_BOUND) * parts["scale"].astype(np.float32)[..., None, :]
        return np.broadcast_to(bound, parts[""].shape)

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return invalid_int8(parts[""]) + invalid_scales(parts["scale"])

    def describe(self) -> dict[str, Any]:
        return {
            "codec_id": self.name,
            "formula": "q * scale[channel]",
            "error_bound": "0.50001 * scale; scale <= max|x| / 127 * (1 + 2^-10) + 2^-24 over the tokens",
        }
