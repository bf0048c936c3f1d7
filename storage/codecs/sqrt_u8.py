"""`sqrt_u8`: attention in 8 bits, with a square-root scale per row: fine steps where probabilities are small."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import Parts, PartShapes, Shape
from alignkd.storage.codecs.half_scale import DTYPE, half_at_least, invalid_scales
from alignkd.storage.errors import RecordError

STEPS = 255
# a softmax in 16 bits may give this instead of 1
LARGEST = 1.001
_HALF_STEP = np.float32(1 / (2 * STEPS))


class SqrtU8:
    """Probabilities [..., columns]: q uint8 of the same shape and `scale` float16 [...], the row's maximum rounded up.

    q = rint(255 * sqrt(a / scale)); a' = scale * (q / 255)^2.
    |a' - a| <= 1.001 * scale * (sqrt(a / scale) / 255 + 1 / (4 * 255^2)): q / 255 is at most d = 1/510 from
    s = sqrt(a / scale), and (s + d)^2 - s^2 = 2sd + d^2; 1.001 is for arithmetic in float32.
    scale <= max a * (1 + 2^-10) + 2^-24. A row of zeros has scale 0 and is decoded to zeros.
    """

    name = "sqrt_u8"
    targets = frozenset({"attention"})
    plain = False
    part_names = ("", "scale")
    shared_parts: frozenset[str] = frozenset()

    def parts(self, shape: Shape) -> PartShapes:
        return {"": (np.dtype("u1"), shape), "scale": (DTYPE, shape[:-1])}

    def encode(self, values: NDArray[Any]) -> Parts:
        """Raises:
        RecordError: a value is not a probability: below 0, above 1.001 or NaN.
        """
        values = values.astype(np.float32, copy=False)
        smallest, largest = values.min(initial=0), values.max(-1, initial=0)
        if not (smallest >= 0 and largest.max(initial=0) <= LARGEST):
            raise RecordError(
                f"sqrt_u8 holds probabilities, found {smallest:.6g}..{largest.max():.6g}; store float16 instead"
            )
        scale = half_at_least(largest)
        roots = values / np.where(scale == 0, 1, scale).astype(np.float32)[..., None]
        np.sqrt(roots, out=roots)
        roots *= STEPS
        return {"": np.rint(roots, out=roots).astype(np.uint8), "scale": scale}

    def decode(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        root = parts[""] * np.float32(1 / STEPS)
        root *= root
        root *= parts["scale"].astype(np.float32)[..., None]
        return root

    def error_bound(self, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        # the exact root is at most d = 1/510 from the stored s, so the square is at most 2sd + d^2 off
        roots = parts[""] * np.float32(1 / STEPS)
        steps = np.float32(1.001) * (2 * roots * _HALF_STEP + _HALF_STEP**2)
        bound: NDArray[np.float32] = steps * parts["scale"].astype(np.float32)[..., None]
        return bound

    def num_invalid(self, parts: Mapping[str, NDArray[Any]]) -> int:
        return invalid_scales(parts["scale"]) + int(np.count_nonzero(parts["scale"] > half_at_least(_LARGEST)))

    def describe(self) -> dict[str, Any]:
        return {
            "codec_id": self.name,
            "formula": "scale[row] * (q / 255)^2",
            "error_bound": "1.001 * scale * (sqrt(a / scale) / 255 + 1 / 260100); scale: row maximum, rounded up",
        }


_LARGEST = np.array(LARGEST, np.float32)
