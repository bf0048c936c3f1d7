"""A batch through a block of bytes is the batch, and a slot is written again only when nobody reads it."""

import gc
import os
from dataclasses import fields, is_dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from alignkd.student_train.data.handoff.block import ALIGNMENT, PackedBatch, in_one_copy, unpack
from alignkd.student_train.data.handoff.slots import SharedSlots
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.vlm.inputs.batch import SequenceBatch

# torch has few operations for uint16 and uint32: what is done to them here must be among these
DTYPES = "uint8 int8 bool uint16 uint32 float16 bfloat16 float32 int32 int64".split()
SHAPES = st.lists(st.integers(0, 5), max_size=4)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any bits in any type and shape, also not contiguous."""
    dtype, shape = getattr(torch, draw(st.sampled_from(DTYPES))), draw(SHAPES)
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, [*shape, dtype.itemsize], dtype=torch.uint8)
    tensor = bits.view(dtype)[..., 0]
    return tensor.transpose(0, 1) if len(shape) > 1 and draw(st.booleans()) else tensor


def batches() -> st.SearchStrategy[Any]:
    """Anything that a batch may be made of, in any depth."""
    leaves = tensors() | st.none() | st.integers() | st.text(max_size=5)
    inner = st.recursive(
        leaves, lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=3), parts)
    )
    sequences = st.builds(SequenceBatch, **{field.name: inner for field in fields(SequenceBatch)})
    return st.builds(
        TruncatedDistribution, **{field.name: inner | sequences for field in fields(TruncatedDistribution)}
    )


@settings(max_examples=20)
@given(batch=batches(), room=st.integers(0, 100))
def test_a_batch_comes_back_bit_for_bit_and_in_place(batch: object, room: int) -> None:
    packed = PackedBatch(batch)
    block_N = torch.full((packed.num_bytes + room,), 170, dtype=torch.uint8)
    packed.write(block_N)
    assert (block_N[packed.num_bytes :] == 170).all()

    found = unpack(block_N[: packed.num_bytes], packed.rest_start)
    _assert_same(found, batch)
    for tensor in _tensors_of(found):
        place = tensor.data_ptr() - block_N.data_ptr()
        assert not tensor.numel() or (0 <= place < packed.rest_start and place % ALIGNMENT == 0)


@settings(max_examples=10)
@given(batch=batches())
def test_a_batch_in_one_copy_is_the_batch_and_shares_nothing_with_it(batch: object) -> None:
    found = in_one_copy(batch, torch.device("cpu"))
    _assert_same(found, batch)
    given_to = {tensor.untyped_storage().data_ptr() for tensor in _tensors_of(batch) if tensor.numel()}
    taken = {tensor.untyped_storage().data_ptr() for tensor in _tensors_of(found) if tensor.numel()}
    assert len(taken) <= 1 and not taken & given_to


def test_a_slot_grows_in_one_process_and_is_read_in_another() -> None:
    slots = SharedSlots(1)
    for num_bytes in (10, 100_000, 50, 5_000_000):
        slot = slots.take()
        assert slot is not None
        if (child := os.fork()) == 0:
            torch.set_num_threads(1)  # as in torch's data workers: a forked process has no threads to share work with
            slots.writable(slot, num_bytes)[:num_bytes] = torch.arange(num_bytes).to(torch.uint8)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        found_N = slots.read(slot, num_bytes)
        assert found_N.equal(torch.arange(num_bytes).to(torch.uint8))
        del found_N


def test_a_slot_is_free_when_the_last_view_of_it_is_gone() -> None:
    slots = SharedSlots(2)
    first, second = slots.take(), slots.take()
    assert first is not None and second is not None and slots.take() is None
    slots.writable(first, 64)[:64] = 7

    view = slots.read(first, 64).view(torch.float32)[3:].reshape(-1, 1)
    computed = (view.requires_grad_() * 1.0).sum()
    gc.collect()
    assert slots.take() is None
    del view
    gc.collect()
    assert slots.take() is None  # the graph still leads to it
    del computed
    gc.collect()
    assert slots.take() == first


def test_memory_outlives_the_slots() -> None:
    slots = SharedSlots(1)
    slot = slots.take()
    assert slot is not None
    slots.writable(slot, 9)[:9] = 5
    found_N = slots.read(slot, 9)
    del slots
    gc.collect()
    assert found_N.tolist() == [5] * 9


def _parts_of(value: Any) -> dict[Any, Any]:
    """A value's parts by name or number; empty for what has none."""
    if is_dataclass(value):
        return vars(value)
    return dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else {}


def _tensors_of(value: Any) -> list[Tensor]:
    here = [value] if isinstance(value, Tensor) else []
    return here + [tensor for part in _parts_of(value).values() for tensor in _tensors_of(part)]


def _assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert list(_parts_of(found)) == list(_parts_of(expected))
    for name, part in _parts_of(expected).items():
        _assert_same(_parts_of(found)[name], part)
    if isinstance(expected, Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.reshape(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))  # NaN included
    elif not _parts_of(expected):
        assert found == expected
