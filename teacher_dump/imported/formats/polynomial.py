"""DistillKit's packed distributions: log-probabilities by a polynomial, token ids by bits.

The bytes of one position, in this order (numbers little-endian):

    exact_k values of `exact_dtype`
    one coefficient of `term_dtype` per polynomial term
    per residual bin: a scale of `scale_dtype`, then `num_elements` codes of `element_bits` bits, padded to whole bytes

Codes and ids are bit strings, most significant bit first. With x = 0, 1, 2, ... (or from 0 to 1, `normalize_t`), value
`exact_k + x` is the sum of coefficient * term(x), plus the residual of the bins, which follow each other. With
`delta_encoding` the values are differences: each log-probability is the sum of the values up to it.
"""

import math
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from alignkd.vlm.settings import Settings

FloatName = Literal["float16", "bfloat16", "float32", "float64"]
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
MAX_ENTRIES = 1 << 16


class ResidualBin(Settings):
    """Codes that share a scale.

    Attributes:
        scale_dtype: dtype of the scale.
        element_bits: bits of a code.
        num_elements: number of codes.
    """

    scale_dtype: FloatName
    element_bits: int = Field(ge=1, le=63)
    num_elements: int = Field(ge=1, le=MAX_ENTRIES)

    @property
    def code_bytes(self) -> int:
        """Bytes of all codes."""
        return -(-self.element_bits * self.num_elements // 8)


class Compression(Settings):
    """`compression_config.yaml`, which DistillKit writes beside its files; without it the bytes have no meaning.

    Attributes:
        d: size of the vocabulary.
        k: entries of a position.
        exact_k: entries that are stored as numbers.
        exact_dtype, term_dtype: dtypes of these numbers and of the coefficients.
        polynomial_terms: powers of x, `sqrt` or `exp`.
        residual_bins: corrections of the entries after the exact ones.
        delta_encoding: whether values are differences.
        error_diffusion: how the writer rounded; does not change what the bytes mean.
        normalize_t: whether x runs from 0 to 1.
    """

    d: int = Field(ge=1, le=1 << 22)
    k: int = Field(ge=1, le=MAX_ENTRIES)
    exact_k: int = Field(ge=0)
    exact_dtype: FloatName = "float32"
    polynomial_terms: list[Annotated[int, Field(ge=-16, le=64)] | Literal["sqrt", "exp"]] | None = None
    term_dtype: FloatName = "float32"
    residual_bins: list[ResidualBin]
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.exact_k > self.k:
            raise ValueError(f"exact_k is {self.exact_k}, above k {self.k}")
        if self.num_residuals > self.k - self.exact_k:
            raise ValueError(
                f"residual_bins have {self.num_residuals} elements, more than k - exact_k = {self.k - self.exact_k}"
            )
        if self.exact_k < self.k and not self.polynomial_terms and not self.residual_bins:
            raise ValueError(f"exact_k {self.exact_k} is below k {self.k} without polynomial_terms and residual_bins")
        return self

    @property
    def num_residuals(self) -> int:
        """Elements of all bins."""
        return sum(part.num_elements for part in self.residual_bins)

    @property
    def id_bits(self) -> int:
        """Bits of a token id."""
        return math.ceil(math.log2(np.float32(self.d)))

    @property
    def id_bytes(self) -> int:
        """Bytes of the ids of a position."""
        return -(-self.k * self.id_bits // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of the values of a position."""
        exact = self.exact_k * _BYTES[self.exact_dtype]
        terms = len(self.polynomial_terms or ()) * _BYTES[self.term_dtype]
        return exact + terms + sum(_BYTES[part.scale_dtype] + part.code_bytes for part in self.residual_bins)


def unpacked_bits(packed_MB: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """`count` unsigned numbers of `bits` bits in each row of bytes, most significant bit first; int64 [M, count]."""
    flat = np.unpackbits(packed_MB, axis=1, count=bits * count).reshape(len(packed_MB), count, bits)
    weights = np.int64(1) << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found: NDArray[np.int64] = flat.astype(np.int64) @ weights
    return found


def unpacked_ids(packed_MB: NDArray[np.uint8], compression: Compression) -> NDArray[np.int64]:
    """Token ids [M, k] of `bytepacked_indices`, uint8 [M, id_bytes]."""
    return unpacked_bits(packed_MB, compression.id_bits, compression.k)


def unpacked_logprobs(packed_MB: NDArray[np.uint8], compression: Compression) -> NDArray[np.float32]:
    """Log-probabilities [M, k] of `compressed_logprobs`, uint8 [M, value_bytes]; computed in float64."""
    reading = _Reading(packed_MB)
    exact = reading.floats(compression.exact_k, compression.exact_dtype)
    approximate = np.zeros((len(packed_MB), compression.k - compression.exact_k))
    if compression.polynomial_terms:
        coefficients = reading.floats(len(compression.polynomial_terms), compression.term_dtype)
        approximate += coefficients @ _terms(compression, approximate.shape[1])
    start = 0
    for part in compression.residual_bins:
        scale = reading.floats(1, part.scale_dtype)
        codes = unpacked_bits(reading.take(part.code_bytes), part.element_bits, part.num_elements)
        approximate[:, start : start + part.num_elements] += _centred(codes, part.element_bits) * scale
        start += part.num_elements
    values = np.concatenate([exact, approximate], axis=1)
    return (values.cumsum(axis=1) if compression.delta_encoding else values).astype(np.float32)


def _terms(compression: Compression, count: int) -> NDArray[np.float64]:
    """The value of each term at each x, float64 [terms, count]."""
    x = np.linspace(0, 1, count) if compression.normalize_t else np.arange(count, dtype=np.float64)
    with np.errstate(divide="ignore"):  # a negative power at 0; entries that are not finite are refused later
        rows = [
            np.sqrt(x) if term == "sqrt" else np.exp(x) if term == "exp" else x ** float(term)
            for term in compression.polynomial_terms or ()
        ]
    return np.stack(rows)


def _centred(codes: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    """Codes as signed steps: -1 and 1 for one bit, else from -2^(bits - 1)."""
    steps: NDArray[np.float64] = codes.astype(np.float64)
    return steps * 2.0 - 1.0 if bits == 1 else steps - 2.0 ** (bits - 1)


class _Reading:
    """Takes bytes off the front of every row."""

    def __init__(self, packed_MB: NDArray[np.uint8]) -> None:
        self._rows, self._at = packed_MB, 0

    def take(self, count: int) -> NDArray[np.uint8]:
        """The next bytes, uint8 [M, count]."""
        self._at += count
        return np.ascontiguousarray(self._rows[:, self._at - count : self._at])

    def floats(self, count: int, dtype: FloatName) -> NDArray[np.float64]:
        """The next numbers, [M, count]."""
        data = self.take(count * _BYTES[dtype])
        if dtype == "bfloat16":
            wide = data.view("<u2").astype(np.uint32) << np.uint32(16)
            return wide.view(np.float32).astype(np.float64)
        return data.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(np.float64)
