"""Device, number format and quantisation of a model."""

import os
from typing import Literal

import torch

from alignkd.vlm.errors import InputError, one_line

Quantization = Literal["none", "int8", "nf4"]
DtypeName = Literal["float32", "bfloat16", "float16"]
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The first compute capability with bfloat16 units (Ampere). torch emulates bfloat16 on older cards.
BFLOAT16_CAPABILITY = (8, 0)


def usable_device(name: str | torch.device | None) -> torch.device:
    """`name` as an existing torch device; None selects a GPU if there is one, else the CPU.

    Raises:
        InputError: this machine has no such device.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {str(name)!r} cannot be used ({one_line(error)[:120]}); use 'cpu', or a torch build for your GPU"
        ) from error


def hide_gpus() -> None:
    """Make torch use the CPU in this process and its children; call it before CUDA is initialised."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def local_cuda_index(local_rank: int, *, visible: int, own_launcher: bool) -> int:
    """Index of the GPU for process `local_rank` on a machine where it sees `visible` GPUs.

    A scheduler may give every task one GPU of its own, which has index 0. With a launcher (torchrun, deepspeed) all
    processes see the same GPUs.

    Args:
        own_launcher: whether torchrun or deepspeed started the processes.

    Raises:
        InputError: there is no GPU for this process.
    """
    if local_rank < visible:
        return local_rank
    if visible == 1 and not own_launcher:
        return 0
    raise InputError(
        f"LOCAL_RANK is {local_rank}, but {visible} GPUs are visible on this machine; start at most {visible} "
        "processes per machine, or make more GPUs visible (CUDA_VISIBLE_DEVICES)"
    )


def keep_float32_exact() -> None:
    """Switch TF32 off for convolutions: torch computes them with 10-bit mantissas on Ampere and later by default.

    Matrix products already use full float32 by default. After this call float32 has 24 bits everywhere.
    """
    torch.backends.cudnn.allow_tf32 = False


def check_dtype(device: torch.device, dtype: torch.dtype) -> str | None:
    """A warning if `device` only emulates `dtype`, None if it computes in it.

    Raises:
        InputError: `device` cannot compute in `dtype`.
    """
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    with torch.cuda.device(device):
        supported = torch.cuda.is_bf16_supported()
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if not supported:
        raise InputError(f"dtype bfloat16: {device} ({name}) does not support it; set dtype to float16 or float32")
    if torch.version.hip is None and capability < BFLOAT16_CAPABILITY:
        return (
            f"{device} ({name}) has no bfloat16 units, torch emulates bfloat16 on it, which is slow; "
            "float16 or float32 is faster there"
        )
    return None
