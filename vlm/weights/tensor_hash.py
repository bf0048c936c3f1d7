"""A hash of named tensors for each dtype in which they may run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from alignkd.vlm.hardware.devices import TORCH_DTYPES


def hash_by_dtype(
    tensors: Iterable[tuple[str, Tensor]], settings: Mapping[str, Any], dtypes: Iterable[str]
) -> dict[str, str]:
    """Dtype -> sha256 over names, shapes and values in that dtype, and the settings.

    Args:
        tensors: in any order; one at a time is held in each dtype.
        settings: plain values.
        dtypes: names in `TORCH_DTYPES`.
    """
    wanted = {name: TORCH_DTYPES[name] for name in dtypes}
    digests: dict[str, dict[str, str]] = {name: {} for name in wanted}
    for key, tensor in tensors:
        for name, dtype in wanted.items():
            digests[name][f"{key} {list(tensor.shape)}"] = _digest(tensor.detach().to("cpu", dtype))
    return {
        name: hashlib.sha256(json.dumps([settings, found], sort_keys=True).encode()).hexdigest()
        for name, found in digests.items()
    }


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
