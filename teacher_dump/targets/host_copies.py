"""Asynchronous copies from the device to the host, on a stream of their own, in parallel to the next forward pass.

On a CPU nothing is copied. A device with streams (CUDA) needs page-locked memory, which torch caches. The code does not
name CUDA, so that `tests/gpu_rules` can run it with the strictest possible streams.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.vlm.hardware.transfers import module_with_streams, to_device
from alignkd.vlm.inputs.batch import SequenceBatch


class HostArrays:
    """Arrays being copied to the host; their source tensors are kept until the copy is complete."""

    def __init__(
        self, copies: dict[str, Tensor], sources: Mapping[str, Tensor] | None = None, event: torch.Event | None = None
    ) -> None:
        self._copies, self._sources, self._event = copies, sources, event

    def wait(self) -> dict[str, NDArray[Any]]:
        """Wait for the copies and return the arrays; any thread may call it, repeatedly."""
        if self._event is not None:
            self._event.synchronize()
            self._sources = None
        return {name: tensor.numpy() for name, tensor in self._copies.items()}


class HostCopies:
    """Start copies from one device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, module_with_streams(device)
        self._stream = None if self._module is None else self._module.Stream(device)

    def start(self, tensors: Mapping[str, Tensor]) -> HostArrays:
        """Start copies of tensors as they will be after the work that is queued now."""
        if self._stream is None or self._module is None:
            return HostArrays({name: tensor.cpu() for name, tensor in tensors.items()})
        self._stream.wait_event(self._module.current_stream(self._device).record_event())
        with self._module.stream(self._stream):
            copies = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in tensors.items()
            }
            return HostArrays(copies, tensors, self._stream.record_event())


def batch_to_device(batch: SequenceBatch, device: torch.device) -> SequenceBatch:
    """Copy every tensor of a batch but those of its images by `to_device`."""
    moved: dict[str, Any] = {
        field.name: to_device(value, device)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    moved["types"] = {name: to_device(values, device) for name, values in batch.types.items()}
    return replace(batch, **moved)
