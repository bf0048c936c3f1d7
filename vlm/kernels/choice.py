"""The choice of kernels for the layers of a decoder, and whether a device can run them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from alignkd.vlm.kernels.compiled import check_compiler, compile_layers
from alignkd.vlm.kernels.liger import check_liger, check_liger_installed, use_liger

Kernels = Literal["torch", "liger", "compile"]


def check_kernels(kernels: Kernels, device: torch.device) -> None:
    """Refuse kernels that cannot run, before a model is loaded.

    Raises:
        InputError: their library, a compiler or the device is missing.
    """
    if kernels == "liger":
        check_liger(device)
    elif kernels == "compile":
        check_compiler(device)


def check_kernels_installed(kernels: Kernels, device_type: str) -> None:
    """Refuse what `check_kernels` would, as far as it can be seen without starting CUDA.

    Started, CUDA keeps memory of the GPU for as long as the process lives.

    Args:
        device_type: `cpu` or `cuda`.

    Raises:
        InputError: as `check_kernels`.
    """
    if kernels == "liger":
        check_liger_installed(device_type)
    elif kernels == "compile" and device_type == "cpu":
        check_compiler(torch.device(device_type))


def use_kernels(kernels: Kernels, decoder: nn.Module | None, layers: Sequence[nn.Module], device: torch.device) -> str:
    """Compute the layers with these kernels from here on; returns a line that describes what was done.

    Args:
        decoder: the language model without its head, a model of transformers that takes `inputs_embeds`; None for any
            other.
        layers: its layers.
        device: where it is.

    Raises:
        InputError: as `check_kernels`; the library has no kernels for this decoder, or they compute something else.
    """
    check_kernels(kernels, device)
    if kernels == "liger":
        return use_liger(decoder, layers)
    if kernels == "compile":
        return compile_layers(layers)
    return "kernels torch"
