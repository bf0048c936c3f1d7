"""Error bounds of stored targets, computed from the stored values by the bound that the codec states."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.int8_group import GROUP
from alignkd.storage.errors import StoreError
from alignkd.storage.record.encoded import EncodedArray
from alignkd.storage.record.record import Target

Bound = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]

# half of one of the 255 steps of a root
_ROOT_STEP = np.float32(1 / 510)
# factor from a bound relative to the rounded value to one relative to the exact value
_FROM_ROUNDED = np.float32(1 + 2**-7)


def error_bound(target: Target) -> NDArray[np.float32]:
    """Largest |decoded - exact| of each value by the docstring of its codec, float32, of the target's shape.

    `exact` is the input of the codec; the bound of float32 is 0.

    Raises:
        StoreError: the codec states no bound.
    """
    codec = target.codec if isinstance(target, EncodedArray) else str(target.dtype)
    if codec not in _BOUNDS:
        raise StoreError(f"codec {codec} states no error bound, expected one of {', '.join(_BOUNDS)}")
    return _BOUNDS[codec](target.parts if isinstance(target, EncodedArray) else {"": target})


def _float32(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return np.zeros(parts[""].shape, np.float32)


def _float16(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return _relative(np.abs(parts[""].astype(np.float32)), 2**-11, 2**-25)


def _bfloat16(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    values = np.abs((parts[""].astype(np.uint32) << 16).view(np.float32))
    return _relative(values, 2**-8, 2**-134)


def _relative(magnitudes: NDArray[Any], step: float, smallest: float) -> NDArray[np.float32]:
    bound: NDArray[np.float32] = np.maximum(magnitudes * np.float32(step) * _FROM_ROUNDED, np.float32(smallest))
    return bound


def _sqrt_u8(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The exact root differs from the stored s by at most d = 1/510, so the squares differ by at most 2sd + d^2."""
    roots = parts[""] * np.float32(1 / 255)
    bound = np.float32(1.001) * (2 * roots * _ROOT_STEP + _ROOT_STEP**2)
    result: NDArray[np.float32] = bound * parts["scale"].astype(np.float32)[..., None]
    return result


def _int8_channel(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    scale = np.float32(0.50001) * parts["scale"].astype(np.float32)[..., None, :]
    return np.broadcast_to(scale, parts[""].shape)


def _int8_group(parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    scale = np.float32(0.50001) * parts["scale"].astype(np.float32)
    bound: NDArray[np.float32] = np.repeat(scale, GROUP, axis=-1)[..., : parts[""].shape[-1]]
    return bound


_BOUNDS: dict[str, Bound] = {
    "float32": _float32,
    "float16": _float16,
    "bfloat16": _bfloat16,
    "sqrt_u8": _sqrt_u8,
    "int8_channel": _int8_channel,
    "int8_group": _int8_group,
}
