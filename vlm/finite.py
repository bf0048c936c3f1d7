"""Weights that are NaN or infinite: one of them makes every output of a model meaningless."""

from pathlib import Path

import torch
from torch import Tensor

from alignkd.vlm.errors import InputError


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinity; one pass, no extra memory. True on the meta device and if empty."""
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor.detach())  # NaN anywhere makes both NaN
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def check_finite(tensor: Tensor, name: str, file: Path) -> None:
    """Refuse a tensor that is not finite.

    Raises:
        InputError: names file and tensor, and counts the values.
    """
    if not is_finite(tensor):
        count = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{file}: {name} holds {count} of {tensor.numel()} values that are NaN or infinite; the file is damaged or "
            "its training diverged: take another copy or an earlier checkpoint"
        )
