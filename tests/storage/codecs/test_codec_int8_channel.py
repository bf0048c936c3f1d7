"""int8_channel: half a step of error per channel, whatever the other channels hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import EncodedArray, RecordError
from alignkd.storage.codecs import get_codec

CODEC = get_codec("int8_channel")
SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=8)
HELD = st.one_of(
    st.floats(-8e6, 8e6, width=32),
    st.floats(-(2.0**-20), 2.0**-20, width=32),
    st.sampled_from([0.0, 2.0**-149, 2.0**-140]),
)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=HELD))
def test_error_is_as_documented(values: np.ndarray) -> None:
    stored = CODEC.encode(values)
    scale = stored["scale"].astype(np.float64)
    assert (np.abs(CODEC.decode(stored) - values.astype(np.float64)) <= 0.50001 * scale[..., None, :]).all()
    step = np.abs(values).max(-2, initial=0).astype(np.float64) / 127
    assert (scale >= step).all()
    assert (scale <= step * (1 + 2.0**-10) + 2.0**-24).all()


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=HELD))
def test_the_opposite_has_the_opposite_code(values: np.ndarray) -> None:
    stored, opposite = CODEC.encode(values), CODEC.encode(-values)
    assert (stored[""] == -opposite[""]).all()
    assert stored["scale"].tobytes() == opposite["scale"].tobytes()


def test_an_outlier_channel_leaves_the_others_alone() -> None:
    values = np.random.default_rng(0).normal(size=(144, 64)).astype(np.float32)
    loud = values.copy()
    loud[:, 5] *= 1000
    others = np.arange(64) != 5
    assert (CODEC.encode(loud)[""][:, others] == CODEC.encode(values)[""][:, others]).all()
    decoded = CODEC.decode(CODEC.encode(loud))[:, others]
    assert np.linalg.norm(decoded - values[:, others]) / np.linalg.norm(values[:, others]) < 8e-3


@pytest.mark.parametrize("wrong", [8.4e6, -1e30, np.inf, np.nan])
def test_what_the_scale_cannot_hold_is_refused(wrong: float) -> None:
    with pytest.raises(RecordError, match=r"int8_channel holds values up to 8.31901e\+06, found .*; store bfloat16"):
        CODEC.encode(np.array([[0, wrong], [1, 1]], np.float32))


def test_rows_share_the_scales() -> None:
    values = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    encoded = EncodedArray.encode("int8_channel", values)
    rows = encoded[np.array([7, 0])]
    assert rows.shape == (2, 5) and rows.num_rows == 2
    assert (rows.decode() == encoded.decode()[[7, 0]]).all()
    assert rows.parts["scale"] is encoded.parts["scale"]


def test_codes_that_encoding_never_makes_are_counted() -> None:
    steps, scale = np.array([[-128, 127]], np.int8), np.array([np.nan, -1], np.float16)
    assert CODEC.num_invalid({"": steps, "scale": scale}) == 3
