"""A target in its stored form; it is decoded on the training device after the transfer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.errors import RecordError
from alignkd.storage.record.shown import show

FloatArray = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class EncodedArray:
    """Float values in the stored parts of a codec (see `alignkd.storage.codecs`, where the formulas are).

    Attributes:
        codec: name of the codec.
        parts: part name -> array. The part "" has the shape of the values; `scale`, where the codec has one, the
            shape that the codec's docstring gives.
    """

    codec: str
    parts: dict[str, NDArray[Any]]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name or 'values'}={show(part)}" for name, part in self.parts.items())
        return f"EncodedArray({self.codec!r}, {parts})"

    @classmethod
    def encode(cls, codec: str, values: FloatArray) -> "EncodedArray":
        """Float values of any shape, encoded.

        Raises:
            StoreError: there is no such codec.
            RecordError: the codec cannot hold these values.
        """
        return cls(codec, get_codec(codec).encode(values))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded values."""
        return self.parts[""].shape

    @property
    def num_rows(self) -> int:
        """Length of the first axis."""
        return len(self.parts[""])

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    def __getitem__(self, rows: slice | NDArray[Any]) -> "EncodedArray":
        """Rows by slice or by an array of row numbers; scales shared by all rows are kept whole."""
        shared = get_codec(self.codec).shared_parts
        return EncodedArray(
            self.codec, {name: part if name in shared else part[rows] for name, part in self.parts.items()}
        )

    def decode(self) -> NDArray[np.float32]:
        """The values, on the host; for tools and tests."""
        return get_codec(self.codec).decode(self.parts)

    def same_as(self, other: "EncodedArray") -> bool:
        """Whether codec and all stored bytes are equal."""
        return self.codec == other.codec and _bytes_of(self.parts) == _bytes_of(other.parts)

    def check(self, name: str, target: str, dimensions: int) -> None:
        """Refuse parts that the codec does not produce.

        Args:
            name: name of the field, for the message.
            target: kind of target, see `Codec.targets`.
            dimensions: number of dimensions of the values.

        Raises:
            RecordError: names the field and both values.
        """
        codec = get_codec(self.codec)
        if codec.plain or target not in codec.targets:
            raise RecordError(f"{name} is encoded as {self.codec}, which cannot encode {target}")
        if "" in self.parts and len(self.shape) != dimensions:
            raise RecordError(f"{name} has shape {self.shape}, expected {dimensions} dimensions")
        found = {part: (values.dtype, values.shape) for part, values in self.parts.items()}
        if found.keys() != set(codec.part_names) or found != codec.parts(self.shape):
            raise RecordError(
                f"{name} has parts {_listed(found)}, {self.codec} produces "
                f"{_listed(codec.parts(self.shape)) if '' in found else codec.part_names}"
            )
        if invalid := codec.num_invalid(self.parts):
            raise RecordError(f"{name} has {invalid} stored numbers that {self.codec} never produces, expected none")


def as_float32(values: FloatArray | EncodedArray) -> NDArray[np.float32]:
    """The values of a target, decoded or widened, on the host; for tools and tests."""
    return values.decode() if isinstance(values, EncodedArray) else values.astype(np.float32, copy=False)


def error_bound(values: FloatArray | EncodedArray) -> NDArray[np.float32]:
    """Largest possible |decoded - exact| of each value of a target, float32, in its shape.

    `exact` is what was given to the codec: the bound of float32 is 0.

    Raises:
        StoreError: there is no such codec.
    """
    if isinstance(values, EncodedArray):
        return get_codec(values.codec).error_bound(values.parts)
    return get_codec(str(values.dtype)).error_bound({"": values})


def _bytes_of(parts: Mapping[str, NDArray[Any]]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (part.dtype.str, part.shape, part.tobytes()) for name, part in parts.items()}


def _listed(parts: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> str:
    return ", ".join(f"{name or 'values'} {dtype}{list(shape)}" for name, (dtype, shape) in parts.items()) or "none"
