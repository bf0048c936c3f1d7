"""Where a model runs, and in how many bits."""

from typing import Literal

import torch

from vlm.errors import InputError, one_line

Quantization = Literal["none", "int8", "nf4"]


def usable_device(name: str | torch.device | None) -> torch.device:
    """`name` as a torch device that is there; None takes a GPU when there is one, else the CPU.

    Raises:
        InputError: no device of that name on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {str(name)!r} cannot be used ({one_line(error)[:120]}); use 'cpu', or a torch build for your GPU"
        ) from error
