"""The bound evaluated from stored numbers holds for every codec and any values it takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.storage import EncodedArray, StoreError
from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.record.encoded import error_bound

CODECS = sorted({name for target in ("attention", "vision_all", "hidden") for name in codec_names(target)})


@pytest.mark.parametrize("codec", CODECS)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-30, 3), rows=st.integers(0, 5), columns=st.integers(1, 70))
def test_no_value_is_further_off(codec: str, seed: int, exponent: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((rows, columns)) * 2.0**exponent * rng.integers(0, 2, (rows, columns))).astype("f4")
    if codec == "sqrt_u8":
        values = np.abs(values) / max(1.0, float(np.abs(values).max(initial=0)))
    encoded = EncodedArray.encode(codec, values)
    target = encoded.parts[""] if get_codec(codec).plain else encoded
    bound = error_bound(target)
    assert bound.shape == values.shape and bound.dtype == np.float32
    assert (np.abs(encoded.decode() - values.astype(np.float64)) <= bound).all()


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(StoreError, match="codec is 'gzip', expected one of float32"):
        error_bound(EncodedArray("gzip", {"": np.zeros(3)}))
