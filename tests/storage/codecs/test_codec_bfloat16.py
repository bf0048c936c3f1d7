"""bfloat16: the bits that torch would give, the stated error, no silent infinity."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import RecordError
from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.bfloat16 import LARGEST

CODEC = get_codec("bfloat16")
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=8)
HELD = st.floats(-LARGEST, LARGEST, width=32)
# halfway between neighbours, subnormals, both zeros, the largest
EDGES = np.array(
    [0x3F808000, 0x3F818000, 0x3F808001, 0x00000001, 0x00008000, 0x80018000, 0x007FFFFF, 0x80000000, 0, 0x7F7F7FFF],
    np.uint32,
).view(np.float32)


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=HELD))
def test_bits_are_those_of_torch(values: np.ndarray) -> None:
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert (CODEC.encode(values)[""] == expected).all()


def test_bits_of_edge_cases_are_those_of_torch() -> None:
    expected = torch.from_numpy(EDGES).to(torch.bfloat16)
    stored = CODEC.encode(EDGES)
    assert stored[""].tolist() == expected.view(torch.int16).numpy().view(np.uint16).tolist()
    assert CODEC.decode(stored).tobytes() == expected.float().numpy().tobytes()


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=HELD))
def test_error_is_as_documented(values: np.ndarray) -> None:
    exact = values.astype(np.float64)
    error = np.abs(CODEC.decode(CODEC.encode(values)) - exact)
    assert (error <= np.maximum(np.abs(exact) * 2.0**-8, 2.0**-134)).all()


@settings(max_examples=50)
@given(hnp.arrays(np.float16, SHAPES, elements=st.floats(-65504, 65504, width=16)))
def test_float16_input_is_rounded_once(values: np.ndarray) -> None:
    assert (CODEC.encode(values)[""] == CODEC.encode(values.astype(np.float32))[""]).all()


@pytest.mark.parametrize("large", [3.4e38, -3.4e38, np.inf, np.nan, -np.nan])
def test_what_would_be_infinite_or_nan_is_refused(large: float) -> None:
    values = np.array([[1.0, large]], np.float32)
    with pytest.raises(RecordError, match=r"bfloat16 holds values up to 3.38953e\+38, found .*; store float32 instead"):
        CODEC.encode(values)


def test_every_finite_pattern_decodes_and_encodes_to_itself() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[(patterns & 0x7FFF) < 0x7F80]
    assert CODEC.num_invalid({"": patterns}) == len(patterns) - len(finite)
    assert (CODEC.encode(CODEC.decode({"": finite}))[""] == finite).all()
