"""Scales in float16, rounded up, so that no value divided by its scale exceeds the range of the steps."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import RecordError

DTYPE = np.dtype("<f2")
LARGEST = 65504.0
# steps of a symmetric int8: -127..127, so that zero is a step and -x has the code of x
INT8_STEPS = 127
# half a step, and what arithmetic in float32 adds
STEP_BOUND = 0.50001


def half_at_least(values: NDArray[Any]) -> NDArray[np.float16]:
    """Round non-negative values up to float16.

    Infinite above 65504; 6e-8 (the smallest subnormal) for anything positive below it; 0 only for 0.
    """
    with np.errstate(over="ignore"):
        halves = np.abs(values).astype(DTYPE)  # abs: a scale is never the negative zero
    too_small = halves < values
    # the next bit pattern is the next number: halves are not negative here
    return np.asarray(halves.view(np.uint16) + too_small, np.uint16).view(DTYPE)


def int8_scale(largest: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    """Width of one step of int8 for values up to the magnitude `largest`.

    Raises:
        RecordError: the width leaves float16, or a magnitude is NaN.
    """
    # float64: in float32 a subnormal number divided by 127 can be 0
    scale = half_at_least(largest.astype(np.float64) / INT8_STEPS)
    if not np.isfinite(scale).all():
        raise RecordError(
            f"{name} holds values up to {LARGEST * INT8_STEPS:.6g}, found {float(largest.max()):.6g}; "
            "store bfloat16 instead"
        )
    return scale


def to_int8(values: NDArray[np.float32], scale: NDArray[np.float16]) -> NDArray[np.int8]:
    """rint(values / scale), 0 where the scale is 0; `scale` broadcasts to the shape of `values`."""
    steps = values / np.where(scale == 0, 1, scale).astype(np.float32)
    return np.rint(steps, out=steps).astype(np.int8)


def invalid_scales(scale: NDArray[Any]) -> int:
    """Count scales that are negative, infinite or NaN."""
    return int(np.count_nonzero(~(np.isfinite(scale) & (scale >= 0))))


def invalid_int8(steps: NDArray[Any]) -> int:
    """Count -128, which is not a step of a symmetric int8."""
    return int(np.count_nonzero(steps == -128))
