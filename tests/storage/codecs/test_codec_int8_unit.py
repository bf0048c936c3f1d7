"""int8_unit: half a step of error everywhere between -1 and 1; what is beyond is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import RecordError
from alignkd.storage.codecs import get_codec

CODEC = get_codec("int8_unit")
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)))
def test_error_is_as_documented(values: np.ndarray) -> None:
    stored = CODEC.encode(values)
    error = np.abs(CODEC.decode(stored) - values.astype(np.float64))
    assert (error <= CODEC.error_bound(stored)).all() and (error <= 0.50001 / 127 + 0.0001).all()
    assert CODEC.num_invalid(stored) == 0


def test_signs_are_alike_and_the_ends_are_exact() -> None:
    values = np.array([-1, -0.25, 0, 0.25, 1], np.float32)
    found = CODEC.decode(CODEC.encode(values))
    assert (found == -found[::-1]).all() and found[[0, 2, 4]].tolist() == [-1, 0, 1]


@pytest.mark.parametrize("rounded", [1.00005, -1.00005])
def test_a_cosine_that_was_rounded_up_is_1(rounded: float) -> None:
    stored = CODEC.encode(np.array([rounded], np.float32))
    assert abs(CODEC.decode(stored)[0]) == 1


@pytest.mark.parametrize("wrong", [1.002, -1.5, np.inf, np.nan])
def test_what_is_no_cosine_is_refused(wrong: float) -> None:
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(RecordError, match=r"int8_unit holds values in -1..1, found .*; store float16 instead"),
    ):
        CODEC.encode(np.array([[0, wrong]], np.float32))
