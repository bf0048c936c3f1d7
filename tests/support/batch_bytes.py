"""A batch as bytes, to compare batches."""

from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor


def bytes_of(value: Any) -> bytes:
    """Every tensor and number of a batch, types and shapes included."""
    if isinstance(value, Tensor):
        header = f"{value.dtype}{tuple(value.shape)}".encode()
        # joined anew: the only element of a tensor may have any stride, which a view of its bytes refuses
        return header + torch.cat([value.reshape(-1)]).view(torch.uint8).numpy().tobytes()
    if is_dataclass(value):
        return b"".join(name.encode() + bytes_of(part) for name, part in vars(value).items())
    if isinstance(value, dict):
        return b"".join(name.encode() + bytes_of(part) for name, part in value.items())
    return repr(value).encode()
