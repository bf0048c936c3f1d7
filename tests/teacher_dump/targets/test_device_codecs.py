"""The codecs on the teacher's device give the bytes of those of the store, and the same refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.errors import RecordError
from alignkd.storage.record.encoded import EncodedArray
from alignkd.teacher_dump.targets.device_codecs import StoredParts, encode

NAMES = sorted({name for target in ("attention", "vision_all", "hidden", "unit") for name in codec_names(target)})


def on_host(codec: str, values: torch.Tensor) -> StoredParts:
    return StoredParts(codec=codec, parts={name: part.numpy() for name, part in encode(codec, values).items()})


def values_for(codec: str, shape: tuple[int, ...], seed: int, exponent: int) -> torch.Tensor:
    """Numbers over many magnitudes, whole rows and channels of zeros, ties half way between two steps."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * 2.0 ** (exponent * torch.rand(shape, generator=generator))
    values[torch.rand(shape, generator=generator) < 0.1] = 0.0
    values[..., : shape[-1] // 3] = (values[..., : shape[-1] // 3] * 4).round() / 4
    if shape[0] > 1:
        values[0] = 0.0
    if codec == "int8_unit":
        return values.div(values.abs().max().clamp(min=1.0))
    return values.abs().div(values.abs().max().clamp(min=1.0)) if codec == "sqrt_u8" else values


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 150), st.integers(0, 10**6), st.sampled_from([-60, -20, 0, 8])
)
@settings(max_examples=15)
def test_bytes_are_those_of_the_store(
    codec: str, dtype: torch.dtype, a: int, b: int, c: int, seed: int, exponent: int
) -> None:
    values = values_for(codec, (a, b, c), seed, exponent).to(dtype)
    expected = get_codec(codec).encode(values.float().numpy())
    found = on_host(codec, values).target("x")
    parts = found.parts if isinstance(found, EncodedArray) else {"": found}
    assert parts.keys() == expected.keys()
    for name, part in expected.items():
        assert parts[name].dtype == part.dtype and parts[name].shape == part.shape
        assert parts[name].flags.c_contiguous and parts[name].tobytes() == part.tobytes(), name


@pytest.mark.parametrize("codec", NAMES)
def test_a_transposed_tensor_comes_back_in_order(codec: str) -> None:
    values = torch.rand(3, 70, 4).transpose(0, 2)
    found = on_host(codec, values).target("x")
    decoded = found.decode() if isinstance(found, EncodedArray) else found
    np.testing.assert_allclose(decoded, values.numpy(), atol=0.01)


@pytest.mark.parametrize("codec", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(codec: str, value: float) -> None:
    values = torch.rand(3, 5, 7)
    values[1, 2, 3] = value
    with pytest.raises(RecordError, match=r"^x has values among its 105 that are NaN or infinite"):
        on_host(codec, values).target("x")


LARGE = [
    ("float16", 7e4),
    ("bfloat16", 3.4e38),
    ("int8_channel", 9e6),
    ("int8_group", -9e6),
    ("int8_unit", 1.01),
    ("sqrt_u8", 1.01),
]


@pytest.mark.parametrize(("codec", "value"), [*LARGE, ("sqrt_u8", -0.01)])
def test_what_a_codec_cannot_hold_is_refused_in_its_own_words(codec: str, value: float) -> None:
    values = torch.zeros(2, 3, 4)
    values[1, 0, 2] = value
    with pytest.raises(RecordError) as ours:
        on_host(codec, values).target("x")
    with pytest.raises(RecordError) as stores:
        get_codec(codec).encode(values.numpy())
    assert str(ours.value).removeprefix("x: ") == str(stores.value)


@pytest.mark.parametrize("codec", NAMES)
def test_nothing_at_all(codec: str) -> None:
    found = on_host(codec, torch.empty(0, 3, 4)).target("x")
    assert found.shape == (0, 3, 4)
