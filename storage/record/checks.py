"""Checks of single fields for the classes of a record; each raises a one-line RecordError."""

import re

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.errors import RecordError
from alignkd.storage.record.encoded import EncodedArray, FloatArray

FLOATS = (np.float16, np.float32)


def check_hex(name: str, value: str) -> None:
    """Check that a text is a sha256."""
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise RecordError(f"{name} is {value!r}, expected 64 lower-case hex digits")


def check_array(name: str, values: object, dtypes: tuple[type, ...], dimensions: int) -> None:
    """Check dtype and number of dimensions of an array."""
    if not isinstance(values, np.ndarray) or values.dtype not in dtypes:
        found = getattr(values, "dtype", type(values).__name__)
        raise RecordError(f"{name} is {found}, expected {' or '.join(d.__name__ for d in dtypes)}")
    if values.ndim != dimensions:
        raise RecordError(f"{name} has shape {values.shape}, expected {dimensions} dimensions")


def check_target(name: str, target: str, values: object, dimensions: int) -> None:
    """Check a finite float array, or an encoded one whose codec fits the target."""
    if isinstance(values, EncodedArray):
        values.check(name, target, dimensions)
    else:
        check_array(name, values, FLOATS, dimensions)
        check_finite(name, values)  # type: ignore[arg-type]


def check_further(name: str, values: object) -> None:
    """Check a target without a field of its own: finite floats with rows, encoded by a codec of rows or not."""
    if isinstance(values, EncodedArray):
        targets = get_codec(values.codec).targets
        target = next((one for one in ("attention", "unit") if one in targets), "hidden")
        values.check(f"more[{name!r}]", target, len(values.shape))
        return
    dimensions = max(1, getattr(values, "ndim", 1))
    check_array(f"more[{name!r}]", values, FLOATS, dimensions)
    check_finite(f"more[{name!r}]", values)  # type: ignore[arg-type]


def check_finite(name: str, values: FloatArray) -> None:
    """Check that no value is NaN or infinite."""
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise RecordError(f"{name} has {bad} of {values.size} values that are NaN or infinite, expected none")


def check_positions(name: str, positions: NDArray[np.int32], length: int) -> None:
    """Check that positions ascend within a sequence."""
    if not positions.size:
        return
    if positions[0] < 0 or positions[-1] >= length or (np.diff(positions) <= 0).any():
        raise RecordError(
            f"{name} spans {int(positions.min())}..{int(positions.max())}, expected rising positions "
            f"within 0..{length - 1}"
        )


def check_offsets(offsets: NDArray[np.int64], positions: tuple[str, int], entries: dict[str, int]) -> None:
    """Check offsets of a CSR layout: they ascend from 0 to the number of entries, with one more than positions.

    Args:
        positions: name and length of an array with one number per position.
        entries: name -> length of the arrays with one number per entry.
    """
    check_array("offsets", offsets, (np.int64,), 1)
    name, number = positions
    if len(offsets) != number + 1:
        raise RecordError(f"offsets has shape {offsets.shape}, {name} {(number,)}: offsets needs one more")
    ends = {int(offsets[-1]), *entries.values()}
    if len(ends) != 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        lengths = ", ".join(f"{name} has {length}" for name, length in entries.items())
        raise RecordError(f"offsets must rise from 0 to the number of entries: they end at {offsets[-1]}, {lengths}")
