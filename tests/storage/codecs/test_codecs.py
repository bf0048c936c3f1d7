"""What all codecs have in common: every encode has a decode, and what cannot be held is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import RecordError, StoreError
from alignkd.storage.codecs import CODECS, check_rows_are_separate, codec_names, get_codec
from alignkd.storage.codecs.int8_channel import Int8Channel

SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=6)
FINITE_32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
FINITE_16 = st.floats(width=16, allow_nan=False, allow_infinity=False)
TARGETS = ("attention", "vision_top", "vision_all", "hidden", "unit")
# the codecs that this file tests; a new one has a test of its own
ALL = ("float32", "float16", "bfloat16", "sqrt_u8", "int8_channel", "int8_group", "int8_unit")


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=FINITE_32))
def test_float32_keeps_every_bit(values: np.ndarray) -> None:
    codec = get_codec("float32")
    assert codec.decode(codec.encode(values)).tobytes() == values.tobytes()


@settings(max_examples=50)
@given(hnp.arrays(np.float16, SHAPES, elements=FINITE_16))
def test_float16_keeps_every_bit_of_float16(values: np.ndarray) -> None:
    for name in ("float16", "float32"):
        codec = get_codec(name)
        assert codec.decode(codec.encode(values)).astype(np.float16).tobytes() == values.tobytes()


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-65504, 65504, width=32)))
def test_float16_error_is_as_documented(values: np.ndarray) -> None:
    codec = get_codec("float16")
    stored = codec.encode(values)
    assert stored[""].dtype == np.float16
    error = np.abs(codec.decode(stored).astype(np.float64) - values)
    assert (error <= np.maximum(np.abs(values.astype(np.float64)) * 2**-11, 2**-25)).all()


@settings(max_examples=50)
@given(hnp.arrays(np.float32, (2, 3), elements=FINITE_32), st.floats(65536, 2.0**99, width=32))
def test_float16_refuses_what_overflows(values: np.ndarray, large: float) -> None:
    values[1, 2] = -large
    with pytest.raises(RecordError, match=r"float16 holds values up to 65504, found .*; store float32"):
        get_codec("float16").encode(values)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=50)
@given(
    values=hnp.arrays(np.float32, SHAPES.filter(lambda shape: min(shape) < 6), elements=st.floats(0, 1, width=32)),
)
def test_what_is_encoded_has_the_promised_parts_and_can_be_encoded_again(name: str, values: np.ndarray) -> None:
    """Decoded values come back unchanged from a second encoding with 16 bits; every part keeps its promise."""
    codec = get_codec(name)
    stored = codec.encode(values)
    assert {part: (array.dtype, array.shape) for part, array in stored.items()} == codec.parts(values.shape)
    assert tuple(stored) == codec.part_names
    assert codec.num_invalid(stored) == 0
    decoded = codec.decode(stored)
    assert (decoded.dtype, decoded.shape) == (np.float32, values.shape)
    if not stored.keys() - {""}:
        assert codec.encode(decoded)[""].tobytes() == stored[""].tobytes()


@pytest.mark.parametrize("name", ALL)
def test_encoding_leaves_its_input_alone(name: str) -> None:
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5)
    before = values.copy()
    codec = get_codec(name)
    stored = codec.encode(values)
    copies = {part: array.copy() for part, array in stored.items()}
    codec.decode(stored)
    assert (values == before).all()
    assert all((stored[part] == copies[part]).all() for part in stored)


@pytest.mark.parametrize("name", ALL)
def test_a_view_with_strides_is_encoded_as_its_copy(name: str) -> None:
    codec, values = get_codec(name), np.linspace(0, 1, 240, dtype=np.float32).reshape(8, 5, 6).transpose(1, 0, 2)
    for part, stored in codec.encode(values[:, ::2]).items():
        assert stored.tobytes() == codec.encode(values[:, ::2].copy())[part].tobytes()


@pytest.mark.parametrize("name", ALL)
def test_the_description_is_json(name: str) -> None:
    described = json.loads(json.dumps(get_codec(name).describe()))
    assert described["codec_id"] == name
    assert described["formula"] and described["error_bound"]


def test_each_target_has_the_codecs_that_suit_it() -> None:
    known = {name: tuple(codec for codec in codec_names(name) if codec in ALL) for name in TARGETS}
    assert known["attention"] == ("float32", "float16", "bfloat16", "sqrt_u8")
    assert known["vision_top"] == known["vision_all"] == ("float32", "float16", "bfloat16", "int8_channel")
    assert known["hidden"] == ("float32", "float16", "bfloat16", "int8_group")
    assert known["unit"] == ("float32", "float16", "int8_unit")


@settings(max_examples=50)
@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-1, 1, width=32)))
def test_int8_unit_is_within_its_bound(values: np.ndarray) -> None:
    codec = get_codec("int8_unit")
    stored = codec.encode(values)
    error = np.abs(codec.decode(stored).astype(np.float64) - values)
    assert (error <= codec.error_bound(stored)).all() and (error <= 0.50001 / 127 + 0.0001).all()


def test_int8_unit_refuses_what_is_no_cosine() -> None:
    for values in ([0.0, 1.1], [-1.1, 0.0], [np.nan, 0.0]):
        with pytest.raises(RecordError, match=r"int8_unit holds values in -1..1, found .*; store float16 instead"):
            get_codec("int8_unit").encode(np.array(values, np.float32))


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(StoreError, match="codec is 'zip', expected one of float32, float16, bfloat16, sqrt_u8"):
        get_codec("zip")


def test_a_codec_of_attention_has_its_parts_for_each_row() -> None:
    class ForAttention(Int8Channel):
        name = "shared"
        targets = frozenset({"attention"})

    check_rows_are_separate(CODECS.values())
    with pytest.raises(
        ImportError, match="codec 'shared' of attention shares scale between rows; store it for each row"
    ):
        check_rows_are_separate([ForAttention()])
