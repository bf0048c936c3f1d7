"""From the device to the host without waiting: the copies run beside the next forward pass, on a stream of their own.

On a CPU there is nothing to copy. A device with streams (CUDA) needs page-locked memory, which torch keeps and reuses
by itself. Nothing here names CUDA, so `tests/gpu_rules` runs this code with the strictest streams there can be.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.vlm.inputs.batch import SequenceBatch


class HostArrays:
    """Arrays on their way to the host; the tensors they come from are kept until they have arrived."""

    def __init__(
        self, copies: dict[str, Tensor], sources: Mapping[str, Tensor] | None = None, event: torch.Event | None = None
    ) -> None:
        self._copies, self._sources, self._event = copies, sources, event

    def wait(self) -> dict[str, NDArray[Any]]:
        """The arrays, once all of them have arrived; from any thread, as often as wanted."""
        if self._event is not None:
            self._event.synchronize()
            self._sources = None
        return {name: tensor.numpy() for name, tensor in self._copies.items()}


class HostCopies:
    """Starts copies from one device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, _module_with_streams(device)
        self._stream = None if self._module is None else self._module.Stream(device)

    def start(self, tensors: Mapping[str, Tensor]) -> HostArrays:
        """Copies of tensors as they will be when the work queued so far is done."""
        if self._stream is None or self._module is None:
            return HostArrays({name: tensor.cpu() for name, tensor in tensors.items()})
        self._stream.wait_event(self._module.current_stream(self._device).record_event())
        with self._module.stream(self._stream):
            copies = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in tensors.items()
            }
            return HostArrays(copies, tensors, self._stream.record_event())


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device, without waiting where page-locked memory allows it."""
    if _module_with_streams(device) is not None:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def batch_to_device(batch: SequenceBatch, device: torch.device) -> SequenceBatch:
    """Every tensor of a batch, by `to_device`."""
    moved = {
        field.name: to_device(value, device)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, **moved)


def _module_with_streams(device: torch.device) -> Any:
    """torch's module of a device that copies beside its other work, such as `torch.cuda`; None of any other device."""
    if device.type == "cpu":  # whose module has streams in name alone
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "Stream") else None
