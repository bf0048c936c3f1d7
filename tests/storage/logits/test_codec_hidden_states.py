"""Hidden states in every codec that may hold them; logits from them differ by what the codec rounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage import EncodedArray, HiddenStates, LogitsCodec, RecordError, StoreError, as_float32
from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.logits.hidden_states import HiddenStatesCodec
from alignkd.storage.logits.registry import LogitSizes, logits_codec

DTYPES = codec_names("hidden")


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30)
@given(
    values=hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.just(70)), elements=st.floats(-100, 100, width=32))
)
def test_states_come_back_as_their_codec_gives_them(dtype: str, values: np.ndarray) -> None:
    codec = HiddenStatesCodec(70, dtype)
    back = codec.decode(codec.encode(HiddenStates(states=values)).__getitem__)
    back.__post_init__()
    assert (as_float32(back.states) == get_codec(dtype).decode(get_codec(dtype).encode(values))).all()
    assert isinstance(back.states, np.ndarray) == (dtype in ("float32", "float16"))
    again = codec.encode(back)
    assert {name: part.tobytes() for name, part in again.items()} == {
        name: part.tobytes() for name, part in codec.encode(HiddenStates(states=values)).items()
    }


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 1e-9), ("float16", 1e-5), ("bfloat16", 3e-4), ("int8_group", 3e-3)]
)
def test_the_distribution_survives(dtype: str, most: float) -> None:
    """KL(exact || stored) in nats, mean of 20 positions, logits of standard deviation 3."""
    rng = np.random.default_rng(0)
    states, head = rng.normal(size=(20, 256)).astype(np.float32), rng.normal(size=(500, 256)) * 3 / 16
    p, q = (log_softmax(as_float32(target) @ head.T) for target in (states, EncodedArray.encode(dtype, states)))
    assert (np.exp(p) * (p - q)).sum(1).mean() < most


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_what_does_not_fit_is_refused() -> None:
    states = np.zeros((2, 8), np.float32)
    with pytest.raises(StoreError, match=r"hidden_states has shape \(2, 8\), the store expects \(2, 9\)"):
        HiddenStatesCodec(9, "bfloat16").encode(HiddenStates(states=states))
    encoded = HiddenStates(states=EncodedArray.encode("int8_group", states))
    with pytest.raises(StoreError, match="hidden_states is encoded as int8_group, the store keeps bfloat16; decode it"):
        HiddenStatesCodec(8, "bfloat16").encode(encoded)
    with pytest.raises(RecordError, match="hidden states is encoded as int8_channel, which cannot encode hidden"):
        HiddenStates(states=EncodedArray.encode("int8_channel", states))
    with pytest.raises(RecordError, match="hidden states has 1 of 16 values that are NaN"):
        HiddenStates(states=np.where(np.arange(16).reshape(2, 8) == 3, np.nan, 0).astype(np.float32))
    with pytest.raises(RecordError, match=r"hidden states has shape \(8,\), expected 2 dimensions"):
        HiddenStates(states=states[0])


def test_settings_reach_the_codec() -> None:
    sizes = LogitSizes(vocab_size=10, hidden_size=70)
    codec = logits_codec(LogitsCodec(kind="hidden", dtype="int8_group"), sizes)
    assert codec is not None
    assert [(name, row) for name, _, _, row in codec.arrays()] == [
        ("hidden_states", (70,)),
        ("hidden_states_scale", (2,)),
    ]
    assert codec.describe()["codec_id"] == "int8_group"
    assert logits_codec(LogitsCodec(kind="none"), sizes) is None
