"""A micro-batch as one block of bytes: its tensors back to back, then a pickle of the rest.

torch passes every tensor of a batch to another process through a separate shared file, which costs more than copying
the bytes. One block can be written to reused memory and is read in place. To a device, one block is one copy.
"""

import io
import math
import pickle
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignkd.vlm.hardware.transfers import outgoing, sent

T = TypeVar("T")

ALIGNMENT = 64  # a cache line, and more than any dtype needs


class PackedBatch:
    """The layout of one batch as a block.

    The rest of the batch (dataclasses, dicts, integers, None) is a pickle that refers to each tensor by its offset, so
    new fields need no code here. It is written and read by processes of one run, never from a file.

    Attributes:
        rest_start: offset of the pickle, after the last tensor.
        num_bytes: size of the block.
    """

    def __init__(self, batch: object) -> None:
        pickler = _TensorsApart()
        pickler.dump(batch)
        self._tensors, self._rest = pickler.tensors, pickler.file.getvalue()
        self.rest_start = pickler.end
        self.num_bytes = self.rest_start + len(self._rest)

    def write(self, block_N: Tensor) -> None:
        """Write the batch into a block, uint8 [at least `num_bytes`]."""
        self._write_tensors(block_N)
        block_N[self.rest_start : self.num_bytes] = torch.frombuffer(bytearray(self._rest), dtype=torch.uint8)

    def on_device(self, device: torch.device) -> Any:
        """The batch with all tensors on a device, in one copy that the host does not wait for.

        The tensors of the batch may be written over afterwards.
        """
        block_N = outgoing(self.rest_start, device)
        self._write_tensors(block_N)
        return _TensorsInPlace(sent(block_N, device), self._rest).load()

    def _write_tensors(self, block_N: Tensor) -> None:
        for start, tensor in self._tensors:
            # copied in its own dtype: a single element may have any stride, which a view of its bytes refuses
            block_N[start : start + tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))


def unpack(block_N: Tensor, rest_start: int) -> Any:
    """The batch in a block, uint8 [`num_bytes`]; its tensors share the block's memory."""
    return _TensorsInPlace(block_N, block_N[rest_start:].numpy().tobytes()).load()


def in_one_copy(value: T, device: torch.device) -> T:
    """The same value with all its tensors on a device; they share one block of memory there."""
    moved: T = PackedBatch(value).on_device(device)
    return moved


class _TensorsApart(pickle.Pickler):
    """Assigns each tensor an aligned offset in the block instead of pickling it."""

    def __init__(self) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []
        self.end = 0

    def persistent_id(self, value: Any) -> tuple[int, torch.dtype, tuple[int, ...]] | None:
        if not isinstance(value, Tensor):
            return None
        start = self.end
        self.tensors.append((start, value))
        self.end += math.ceil(value.nbytes / ALIGNMENT) * ALIGNMENT
        return start, value.dtype, tuple(value.shape)


class _TensorsInPlace(pickle.Unpickler):
    """Replaces the offsets of `_TensorsApart` by views of the block."""

    def __init__(self, block_N: Tensor, rest: bytes) -> None:
        super().__init__(io.BytesIO(rest))
        self.block_N = block_N

    def persistent_load(self, place: tuple[int, torch.dtype, tuple[int, ...]]) -> Tensor:
        start, dtype, shape = place
        num_bytes = math.prod(shape) * dtype.itemsize
        return self.block_N[start : start + num_bytes].view(dtype).view(shape)
