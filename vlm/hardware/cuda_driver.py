"""Why torch does not use the machine's NVIDIA GPU, found by querying the driver without torch.

`torch.cuda.is_available()` returns False without a reason. The most common one is a driver older than the CUDA version
of the torch wheel. A run on the CPU would take weeks, so the user must learn the reason.
"""

import ctypes
import os
from dataclasses import dataclass
from typing import Any, Self

import torch

CUDA_LIBRARY = "libcuda.so.1"
# Result code of cuInit, https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html
SUCCESS, NO_DEVICE = 0, 100


@dataclass(frozen=True, kw_only=True)
class CudaDriver:
    """The installed NVIDIA driver.

    Attributes:
        version: newest supported CUDA version, (major, minor).
        init_code: return code of `cuInit`; 100 if the machine has no GPU.
    """

    version: tuple[int, int]
    init_code: int

    @classmethod
    def installed(cls) -> Self | None:
        """The driver of this machine, or None."""
        try:
            return cls.of_library(ctypes.CDLL(CUDA_LIBRARY))
        except OSError:
            return None

    @classmethod
    def of_library(cls, library: Any) -> Self:
        """The driver behind a loaded `libcuda`."""
        number = ctypes.c_int(0)
        library.cuDriverGetVersion(ctypes.byref(number))  # 1000 * major + 10 * minor
        version = (number.value // 1000, number.value % 1000 // 10)
        return cls(version=version, init_code=library.cuInit(0))


def unused_gpu(driver: CudaDriver | None, *, built_for: str | None, visible_devices: str | None = None) -> str | None:
    """Why torch cannot use an existing NVIDIA GPU, with the next step; None without a GPU, or if it is hidden.

    Args:
        driver: driver of this machine.
        built_for: `torch.version.cuda`, such as "13.0"; None for a CPU build of torch.
        visible_devices: value of CUDA_VISIBLE_DEVICES, None if unset.
    """
    if driver is None or driver.init_code == NO_DEVICE or visible_devices in ("", "-1"):
        return None
    runs = "{}.{}".format(*driver.version)
    if built_for is None:
        return "this machine has an NVIDIA GPU, but the installed torch is a CPU build; install a CUDA build of torch"
    if driver.version[0] < int(built_for.partition(".")[0]):
        return (
            f"the installed torch is built for CUDA {built_for}, the NVIDIA driver runs CUDA {runs} at most; update "
            f"the driver, or install a torch built for CUDA {driver.version[0]}"
        )
    if driver.init_code != SUCCESS:
        return f"the NVIDIA driver (CUDA {runs}) does not start, cuInit returned {driver.init_code}; run nvidia-smi"
    return (
        f"torch (CUDA {built_for}) cannot use the GPU, though the NVIDIA driver (CUDA {runs}) starts; "
        "run `python -c 'import torch; torch.cuda.init()'` to see the reason"
    )


def unused_gpu_here() -> str | None:
    """`unused_gpu` for this machine and torch; None if torch can use CUDA or is built for AMD."""
    if torch.cuda.is_available() or torch.version.hip is not None:
        return None
    return unused_gpu(
        CudaDriver.installed(),
        built_for=torch.version.cuda,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )
