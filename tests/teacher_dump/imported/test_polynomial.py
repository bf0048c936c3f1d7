"""The decoder of DistillKit's bytes against an encoder written from the description of the format."""

from typing import Any

import numpy as np
import pytest
from foreign_files import packed_bits, packed_position
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from alignkd.teacher_dump.imported.formats.polynomial import (
    Compression,
    unpacked_bits,
    unpacked_ids,
    unpacked_logprobs,
)

DTYPES = ["float16", "bfloat16", "float32", "float64"]


@settings(max_examples=100)
@given(st.data(), st.integers(1, 40), st.integers(1, 30))
def test_bits_come_back(data: st.DataObject, bits: int, count: int) -> None:
    rows = [data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)) for _ in range(2)]
    packed = np.stack([np.frombuffer(packed_bits(row, bits), np.uint8) for row in rows])
    np.testing.assert_array_equal(unpacked_bits(packed, bits, count), rows)


@given(st.sampled_from([1000, 32000, 32768, 32769, 128256, 151936]), st.integers(1, 20), st.integers(0, 2**31))
def test_ids_come_back(d: int, k: int, seed: int) -> None:
    """The bits of an id are those that the largest id needs, also at powers of two."""
    compression = Compression(d=d, k=k, exact_k=k, residual_bins=[])
    ids = np.random.default_rng(seed).integers(0, d, (3, k))
    ids[0, 0] = d - 1
    packed = np.stack([np.frombuffer(packed_bits(row.tolist(), (d - 1).bit_length()), np.uint8) for row in ids])
    assert packed.shape[1] == compression.id_bytes
    np.testing.assert_array_equal(unpacked_ids(packed, compression), ids)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    k = draw(st.integers(1, 24))
    exact_k = draw(st.integers(0, k))
    terms = draw(st.lists(st.sampled_from([0, 1, 2, 3, "sqrt"]), unique_by=str, max_size=4)) or None
    bins, left = [], k - exact_k
    while left and draw(st.booleans()):
        count = draw(st.integers(1, left))
        left -= count
        bins.append(
            {
                "scale_dtype": draw(st.sampled_from(DTYPES)),
                "element_bits": draw(st.integers(1, 12)),
                "num_elements": count,
            }
        )
    if exact_k < k and not terms and not bins:
        terms = [0]
    return {
        "d": 1000,
        "k": k,
        "exact_k": exact_k,
        "exact_dtype": draw(st.sampled_from(DTYPES)),
        "polynomial_terms": terms,
        "term_dtype": draw(st.sampled_from(DTYPES)),
        "residual_bins": bins,
        "delta_encoding": draw(st.booleans()),
        "normalize_t": draw(st.booleans()),
    }


@settings(max_examples=150)
@given(configs(), st.integers(0, 2**31))
def test_values_are_what_the_bytes_mean(config: dict[str, Any], seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = -np.sort(random.exponential(2, (3, config["k"])), axis=1)
    packed, meant = zip(*(packed_position(row, config) for row in rows), strict=True)
    compression = Compression(**config)
    stacked = np.stack([np.frombuffer(data, np.uint8) for data in packed])
    assert stacked.shape[1] == compression.value_bytes
    found = unpacked_logprobs(stacked, compression)
    assert found.shape == (3, config["k"]) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(meant), rtol=1e-5, atol=1e-4)


def test_a_wide_code_keeps_the_value() -> None:
    """The decoder's result is near what was encoded, not only equal to the encoder's own idea of it."""
    config = {
        "d": 1000,
        "k": 16,
        "exact_k": 4,
        "exact_dtype": "float32",
        "polynomial_terms": [0, 1, "sqrt"],
        "term_dtype": "float32",
        "residual_bins": [{"scale_dtype": "float32", "element_bits": 12, "num_elements": 12}],
        "delta_encoding": False,
        "normalize_t": True,
    }
    row = -np.sort(np.random.default_rng(0).exponential(2, 16))
    data, _ = packed_position(row, config)
    found = unpacked_logprobs(np.frombuffer(data, np.uint8)[None], Compression(**config))
    np.testing.assert_allclose(found[0], row, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exact_k": 9}, "exact_k is 9, above k 8"),
        ({"residual_bins": []}, "without polynomial_terms and residual_bins"),
        (
            {"residual_bins": [{"scale_dtype": "float32", "element_bits": 2, "num_elements": 7}]},
            "have 7 elements, more than k - exact_k = 6",
        ),
        ({"quantile": 1}, "Extra inputs"),
        ({"polynomial_terms": ["log"]}, "sqrt"),
        ({"exact_dtype": "float8"}, "float16"),
    ],
)
def test_settings_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    some = [{"scale_dtype": "float32", "element_bits": 2, "num_elements": 6}]
    with pytest.raises(ValidationError, match=message):
        Compression(**{"d": 10, "k": 8, "exact_k": 2, "residual_bins": some} | changes)
