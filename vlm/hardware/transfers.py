"""Copies from the host to a device that the host does not wait for.

A device with streams (CUDA) copies by itself from page-locked memory, which torch caches and does not reuse before the
copy is complete. The code does not name CUDA, so that `tests/gpu_rules` can run it with the strictest possible streams.
"""

from typing import Any

import torch
from torch import Tensor


def module_with_streams(device: torch.device) -> Any:
    """torch's module of a device with asynchronous copies, such as `torch.cuda`; None for other devices."""
    if device.type in ("cpu", "meta"):  # nominal streams, and no module
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "Stream") else None


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device, asynchronously if page-locked memory allows it."""
    if module_with_streams(device) is not None:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def outgoing(num_bytes: int, device: torch.device) -> Tensor:
    """Memory of the host that is written and then passed to `sent`: uint8 [num_bytes].

    It is page-locked if the device copies by itself. Page-locked memory is requested in powers of two, because torch
    reuses a block for requests of the same size, and batches have many sizes.
    """
    if module_with_streams(device) is None:
        return torch.empty(num_bytes, dtype=torch.uint8)
    whole = 1 << max(num_bytes - 1, 0).bit_length()
    return torch.empty(whole, dtype=torch.uint8, pin_memory=True)[:num_bytes]


def sent(block_N: Tensor, device: torch.device) -> Tensor:
    """A copy of `outgoing` memory on the device; the host does not wait if it is page-locked."""
    return block_N.to(device, non_blocking=module_with_streams(device) is not None)
