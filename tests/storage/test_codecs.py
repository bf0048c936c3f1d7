"""Every encode has a decode; what a codec cannot hold is refused, never rounded to infinity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import RecordError, StoreError, TruncatedLogits
from storage.codecs import get_codec
from storage.codecs.truncated_logits import TruncatedLogitsCodec

SHAPES = hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=6)
FINITE_32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
FINITE_16 = st.floats(width=16, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, SHAPES, elements=FINITE_32))
def test_float32_keeps_every_bit(values: np.ndarray) -> None:
    codec = get_codec("float32")
    assert codec.decode(codec.encode(values)).tobytes() == values.tobytes()


@given(hnp.arrays(np.float16, SHAPES, elements=FINITE_16))
def test_float16_keeps_every_bit_of_float16(values: np.ndarray) -> None:
    for name in ("float16", "float32"):
        codec = get_codec(name)
        assert codec.decode(codec.encode(values)).astype(np.float16).tobytes() == values.tobytes()


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(-65504, 65504, width=32)))
def test_float16_error_is_as_documented(values: np.ndarray) -> None:
    codec = get_codec("float16")
    decoded = codec.decode(codec.encode(values))
    assert decoded.dtype == np.float16
    error = np.abs(decoded.astype(np.float64) - values)
    assert (error <= np.maximum(np.abs(values.astype(np.float64)) * 2**-11, 2**-25)).all()


@given(hnp.arrays(np.float32, (2, 3), elements=FINITE_32), st.floats(65536, 2.0**99, width=32))
def test_float16_refuses_what_overflows(values: np.ndarray, large: float) -> None:
    values[1, 2] = -large
    with pytest.raises(RecordError, match=r"float16 holds values up to 65504, found .*; store float32"):
        get_codec("float16").encode(values)


def test_stored_bytes_are_little_endian() -> None:
    values = np.array([[1.0, -2.5]], np.float32)
    assert get_codec("float32").encode(values)[""].tobytes().hex() == "0000803f000020c0"
    assert get_codec("float16").encode(values)[""].tobytes().hex() == "003c00c1"


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(StoreError, match="codec is 'zip', expected one of float16, float32"):
        get_codec("zip")


@st.composite
def truncated_logits(draw: st.DrawFn) -> TruncatedLogits:
    """Up to 4 positions with 1 to 4 entries each of a distribution over 1000 ids."""
    counts = draw(st.lists(st.integers(1, 4), max_size=4))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    masses = [draw(hnp.arrays(np.float64, count + 1, elements=st.floats(0.01, 1))) for count in counts]
    logs = [np.log(mass / mass.sum()) for mass in masses]
    return TruncatedLogits(
        ids=draw(hnp.arrays(np.uint16, int(offsets[-1]), elements=st.integers(0, 999))),
        logprobs=np.concatenate([np.empty(0), *(log[:-1] for log in logs)]).astype(np.float32),
        offsets=offsets,
        tail_logmass=np.array([log[-1] for log in logs], np.float32),
    )


@given(truncated_logits(), st.sampled_from([1000, 70_000]))
def test_truncated_logits_come_back(logits: TruncatedLogits, vocab_size: int) -> None:
    codec = TruncatedLogitsCodec(vocab_size, 3, "float32")
    stored = codec.encode(logits)
    assert stored["entry_ids"].dtype == (np.uint16 if vocab_size == 1000 else np.uint32)
    decoded = codec.decode(stored)
    for name, values in logits.__dict__.items():
        assert (decoded[name] == values).all(), name


@given(truncated_logits())
def test_float16_logprobs_still_hold_the_mass(logits: TruncatedLogits) -> None:
    codec = TruncatedLogitsCodec(1000, 3, "float16")
    TruncatedLogits(**codec.decode(codec.encode(logits)))  # checks the mass again


def one_position(entries: int, largest_id: int = 5) -> TruncatedLogits:
    return TruncatedLogits(
        ids=np.full(entries, largest_id, np.uint16),
        logprobs=np.full(entries, np.log(0.5 / max(entries, 1)), np.float32),
        offsets=np.array([0, entries]),
        tail_logmass=np.log([0.5 if entries else 1.0]).astype(np.float32),
    )


@pytest.mark.parametrize("entries", [0, 5])
def test_truncated_logits_refuse_too_few_and_too_many_entries(entries: int) -> None:
    with pytest.raises(RecordError, match=rf"logits keep {entries}..{entries} entries .* expected 1..4 \(top_k 3"):
        TruncatedLogitsCodec(1000, 3, "float32").encode(one_position(entries))


def test_truncated_logits_refuse_ids_outside_the_vocabulary() -> None:
    with pytest.raises(RecordError, match="logits hold id 40, expected below vocab_size 40"):
        TruncatedLogitsCodec(40, 3, "float32").encode(one_position(1, largest_id=40))
