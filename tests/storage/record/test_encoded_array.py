"""EncodedArray: shape, rows and equality without decoding; parts that no codec makes are refused in a record."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import EncodedArray, RecordError, StoreError, as_float32

LOSSY = ("bfloat16", "sqrt_u8", "int8_channel", "int8_group")
VALUES = np.random.default_rng(0).random((6, 5, 70), np.float32)


@pytest.mark.parametrize("codec", LOSSY)
@settings(max_examples=25)
@given(rows=st.one_of(st.slices(6), st.lists(st.integers(0, 5)).map(lambda rows: np.array(rows, np.uint16))))
def test_rows_are_those_of_the_decoded_values(codec: str, rows: slice | np.ndarray) -> None:
    values = VALUES[:, 0]
    encoded = EncodedArray.encode(codec, values)
    assert (encoded.shape, encoded.num_rows) == ((6, 70), 6)
    assert (encoded[rows].decode() == encoded.decode()[rows]).all()
    encoded[rows].check("field", {"sqrt_u8": "attention", "int8_group": "hidden"}.get(codec, "vision_all"), 2)


def test_bytes_are_counted_over_all_parts() -> None:
    assert EncodedArray.encode("sqrt_u8", VALUES).nbytes == 6 * 5 * 70 + 6 * 5 * 2
    assert EncodedArray.encode("bfloat16", VALUES).nbytes == 6 * 5 * 70 * 2


def test_equality_is_that_of_every_byte() -> None:
    encoded = EncodedArray.encode("sqrt_u8", VALUES)
    assert encoded.same_as(EncodedArray.encode("sqrt_u8", VALUES.copy()))
    assert not encoded.same_as(encoded[:-1])
    assert not encoded.same_as(EncodedArray.encode("bfloat16", VALUES))
    other = encoded.parts["scale"].copy()
    other[0, 0] = np.nextafter(other[0, 0], np.float16(2))
    assert not encoded.same_as(EncodedArray("sqrt_u8", encoded.parts | {"scale": other}))


def test_floats_of_every_kind_become_float32() -> None:
    half = VALUES.astype(np.float16)
    assert as_float32(VALUES) is VALUES
    assert as_float32(half).dtype == np.float32 and (as_float32(half) == half).all()
    assert as_float32(EncodedArray.encode("bfloat16", VALUES)).dtype == np.float32


def parts(codec: str, **changes: Any) -> EncodedArray:
    made = EncodedArray.encode(codec, VALUES).parts | changes
    return EncodedArray(codec, {name: part for name, part in made.items() if part is not None})


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (EncodedArray("float16", {"": VALUES}), "field is encoded as float16, which cannot encode attention"),
        (parts("int8_channel"), "field is encoded as int8_channel, which cannot encode attention"),
        (
            parts("sqrt_u8", scale=None),
            r"field has parts values uint8\[6, 5, 70\], sqrt_u8 produces .* scale float16\[6, 5\]",
        ),
        (parts("sqrt_u8", **{"": None}), "field has parts scale .*, sqrt_u8 produces"),
        (parts("sqrt_u8", more=VALUES), "field has parts .* more float32"),
        (parts("sqrt_u8", **{"": VALUES}), r"values float32\[6, 5, 70\], .*sqrt_u8 produces values uint8\[6, 5, 70\]"),
        (parts("sqrt_u8", scale=np.ones((6, 4), np.float16)), r"scale float16\[6, 4\], sqrt_u8 produces"),
        (parts("sqrt_u8", scale=np.ones((6, 5), np.float32)), r"scale float32\[6, 5\], sqrt_u8 produces"),
        (parts("sqrt_u8", scale=np.full((6, 5), np.nan, np.float16)), "field has 30 stored numbers that sqrt_u8 never"),
        (parts("bfloat16", **{"": np.full((6, 5, 70), 0x7F80, "<u2")}), "field has 2100 stored numbers that bfloat16"),
        (EncodedArray("sqrt_u8", {"": np.zeros((), np.uint8)}), r"field has shape \(\), expected 3 dimensions"),
    ],
)
def test_parts_that_the_codec_never_makes_are_refused(encoded: EncodedArray, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        encoded.check("field", "attention", 3)
    assert "\n" not in str(caught.value)


def test_an_unknown_codec_is_one_line() -> None:
    with pytest.raises(StoreError, match="codec is 'zip', expected one of"):
        EncodedArray("zip", {"": VALUES}).check("field", "attention", 3)
