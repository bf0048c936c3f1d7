"""Page-locked host memory: how much torch allocates for a tensor, and how to avoid that it allocates twice as much.

torch's host allocator rounds every block up to a power of two: a group of 5.1 GiB takes 8 GiB. Since 2.13 it has a
setting that exempts large blocks. An older torch refuses the setting with a ValueError; then nothing is pinned.
"""

import logging

import torch

logger = logging.getLogger(__name__)
ROUNDED_MIB = 1
SETTING = "pinned_max_round_threshold_mb"


def pinned_bytes(num_bytes: int) -> int:
    """Host memory that a pinned tensor takes after `bound_rounding`: a power of two, or its size above ROUNDED_MIB."""
    if num_bytes > ROUNDED_MIB << 20:
        return num_bytes
    return 1 << (num_bytes - 1).bit_length() if num_bytes else 0


def bound_rounding() -> bool:
    """Exempt blocks above ROUNDED_MIB from rounding in this process; False if this torch cannot.

    The user's settings (PYTORCH_ALLOC_CONF) are kept, also a threshold of their own.
    """
    get, put = (getattr(torch._C, f"_accelerator_{name}AllocatorSettings", None) for name in ("get", "set"))
    if get is None or put is None:
        return False
    before = get()
    if SETTING in before:
        return True
    try:
        put(f"{before},{SETTING}:{ROUNDED_MIB}" if before else f"{SETTING}:{ROUNDED_MIB}")
    except (ValueError, RuntimeError):
        return False
    return True


def may_pin(device: torch.device) -> bool:
    """Whether to pin state that is offloaded from `device`: only from a GPU, and if torch does not round it up."""
    if device.type != "cuda" or bound_rounding():
        return device.type == "cuda"
    logger.warning(
        "torch %s rounds page-locked memory up to powers of two, so offloaded state is not page-locked: copies are "
        "slower; torch 2.13 and later can switch the rounding off",
        torch.__version__,
    )
    return False
