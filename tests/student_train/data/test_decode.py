"""What the device decodes is bit for bit what the host decodes, for every codec that a store may name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alignkd.storage.codecs import codec_names, get_codec
from alignkd.student_train.data.decode import DECODERS, EncodedTensor

TARGETS = ("attention", "vision_top", "vision_all", "hidden", "unit")


def test_every_codec_of_the_store_has_a_decoder() -> None:
    assert DECODERS.keys() == {name for target in TARGETS for name in codec_names(target)}


@pytest.mark.parametrize("name", sorted(DECODERS))
@given(
    values=hnp.arrays(
        np.float32,
        # up to three groups of 64 channels, the last one shorter; leading axes as of a batch
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=4).flatmap(
            lambda shape: st.integers(1, 140).map(lambda last: (*shape, last))
        ),
        elements=st.floats(0, 1, width=32),
    ),
    signed=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25)
def test_device_equals_host(name: str, values: np.ndarray, signed: bool, seed: int) -> None:
    if signed and name != "sqrt_u8":
        largest = -1.0 if name == "int8_unit" else -300.0
        values = values * np.random.default_rng(seed).choice([largest, 1.0], values.shape).astype(np.float32)
    codec = get_codec(name)
    parts = codec.encode(values)
    coded = EncodedTensor(codec=name, parts={part: torch.from_numpy(stored) for part, stored in parts.items()})
    assert coded.shape == values.shape
    np.testing.assert_array_equal(coded.decode().float().numpy(), codec.decode(parts))


def test_bfloat16_is_read_not_converted() -> None:
    bits = np.array([[0x3F80, 0xC000, 0x0001]], np.uint16)
    decoded = EncodedTensor(codec="bfloat16", parts={"": torch.from_numpy(bits)}).decode()
    assert decoded.dtype == torch.bfloat16
    assert decoded.tolist() == [[1.0, -2.0, 2.0**-133]]


@pytest.mark.parametrize("rows_of_group", [(3, 3, 3), (1, 5, 2), (4,)])
def test_groups_of_rows_share_scales(rows_of_group: tuple[int, ...]) -> None:
    """Images of different sizes: each is decoded by its own scales."""
    random, codec = np.random.default_rng(0), get_codec("int8_channel")
    images = [(random.standard_normal((rows, 7)) * 10.0**n).astype(np.float32) for n, rows in enumerate(rows_of_group)]
    encoded = [codec.encode(image) for image in images]
    parts = {
        "": torch.from_numpy(np.concatenate([parts[""] for parts in encoded])),
        "scale": torch.from_numpy(np.stack([parts["scale"] for parts in encoded])),
    }
    coded = EncodedTensor(codec=codec.name, parts=parts, rows_of_group=rows_of_group)
    np.testing.assert_array_equal(coded.decode().numpy(), np.concatenate([codec.decode(parts) for parts in encoded]))
