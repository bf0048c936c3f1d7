"""int8_group: half a step of error in every group of 64 channels, also in a shorter last one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import EncodedArray, RecordError
from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.int8_group import GROUP

CODEC = get_codec("int8_group")
# lengths around the borders of groups
SHAPES = st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 63, 64, 65, 127, 128, 130]))
HELD = st.one_of(
    st.floats(-8e6, 8e6, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.sampled_from([0.0, 2.0**-149, 2.0**-140]),
)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=HELD))
def test_error_is_as_documented(values: np.ndarray) -> None:
    stored = CODEC.encode(values)
    error = np.abs(CODEC.decode(stored) - values.astype(np.float64))
    for group, start in enumerate(range(0, values.shape[1], GROUP)):
        scale = stored["scale"][:, group].astype(np.float64)
        assert (error[:, start : start + GROUP] <= 0.50001 * scale[:, None]).all()
        step = np.abs(values[:, start : start + GROUP]).max(1, initial=0).astype(np.float64) / 127
        assert (scale >= step).all()
        assert (scale <= step * (1 + 2.0**-10) + 2.0**-24).all()
    assert stored["scale"].shape[1] == -(-values.shape[1] // GROUP)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([5, 64, 70])), elements=HELD))
def test_rows_are_encoded_one_by_one(values: np.ndarray) -> None:
    whole = EncodedArray.encode("int8_group", values)
    for row in range(len(values)):
        assert whole[row : row + 1].same_as(EncodedArray.encode("int8_group", values[row : row + 1]))


@pytest.mark.parametrize("wrong", [8.4e6, -1e30, np.inf, np.nan])
def test_what_the_scale_cannot_hold_is_refused(wrong: float) -> None:
    with pytest.raises(RecordError, match=r"int8_group holds values up to 8.31901e\+06, found .*; store bfloat16"):
        CODEC.encode(np.array([[0, wrong]], np.float32))
