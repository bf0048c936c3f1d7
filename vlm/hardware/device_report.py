"""Lines that report which device a command uses."""

import os
from pathlib import Path

import torch

from alignkd.vlm.hardware.cuda_driver import unused_gpu_here
from alignkd.vlm.hardware.devices import check_dtype

GIB = 2**30
# Memory limits of a container: Linux control groups version 2 and version 1.
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def device_report(device: torch.device, dtype: torch.dtype, *, chosen: bool) -> tuple[str, list[str]]:
    """The line that names `device` with its memory, and the warnings about it.

    Args:
        dtype: dtype of the weights.
        chosen: whether the user chose the device.

    Raises:
        InputError: `device` cannot compute in `dtype`.
    """
    warnings = [check_dtype(device, dtype)]
    if device.type == "cpu" and not chosen and (reason := unused_gpu_here()):
        warnings.append(f"running on the CPU: {reason}")
    return f"device {describe_device(device)}", [warning for warning in warnings if warning]


def describe_device(device: torch.device) -> str:
    """`cuda:0 (NVIDIA GeForce RTX 3090, 23.7 GiB, 23.1 GiB free)` or `cpu (8 threads, 31.2 GiB)`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
        return f"{device} ({name}, {total / GIB:.1f} GiB, {free / GIB:.1f} GiB free)"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} {'thread' if threads == 1 else 'threads'}, {host_memory() / GIB:.1f} GiB)"
    return str(device)


def host_memory() -> int:
    """Bytes of main memory for this process: the machine's memory or the container's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *filter(None, map(_limit, _MEMORY_LIMITS))])


def _limit(file: Path) -> int | None:
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None  # "max": no limit
