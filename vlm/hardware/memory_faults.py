"""Recognise out-of-memory errors by all the messages of torch, its libraries and the host.

torch raises OutOfMemoryError if its own allocator fails. Libraries that allocate themselves, kernels that are loaded
late, page-locked host memory, NCCL and other device types raise a plain RuntimeError, which only its text identifies.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from alignkd.vlm.errors import InputError, one_line

_CERTAIN = re.compile(
    r"out[ _]?of[ _]?(device[ _]|host[ _])?memory"  # CUDA, HIP, XPU, MPS, NCCL, Triton; their error codes
    r"|(can't|cannot|failed to) allocate memory|not enough memory|std::bad_alloc"  # the host's
    r"|(CUBLAS_STATUS|HIPBLAS_STATUS|CUDNN_STATUS|CUSOLVER_STATUS|CUSPARSE_STATUS|CUFFT)_ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
# Usually, but not always, caused by a lack of memory for a library's workspace.
_LIKELY = re.compile(
    r"(CUBLAS|HIPBLAS|CUDNN|CUSOLVER)_STATUS_NOT_INITIALIZED"
    r"|unable to find an engine to execute|Unable to find a valid cuDNN algorithm|OUT_OF_RESOURCES"
)
# After these errors every call on the device fails with any message.
_BROKEN_DEVICE = re.compile(
    r"illegal (memory access|instruction|address)|device-side assert|unspecified launch failure|misaligned address"
    r"|invalid program counter|hardware stack error|uncorrectable|launch timed out|context is destroyed|unknown error"
    r"|bus error|GPU is lost|fallen off the bus",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the host is out of memory."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError) or _BROKEN_DEVICE.search(str(error)):
        return False
    # by name, because this module is imported without torch
    return type(error).__name__ == "OutOfMemoryError" or _CERTAIN.search(str(error)) is not None


def may_be_out_of_memory(error: BaseException) -> bool:
    """As `is_out_of_memory`, or an error that usually has this cause: reason to retry with less, but not proof."""
    is_likely = isinstance(error, RuntimeError) and not _BROKEN_DEVICE.search(str(error))
    return is_out_of_memory(error) or (is_likely and _LIKELY.search(str(error)) is not None)


def memory_line(error: BaseException) -> str:
    """A short description of the error, to be followed by what to do."""
    text = one_line(error)[:160]
    where = "out of host memory" if isinstance(error, MemoryError) else "out of memory"
    return f"{where} ({text})" if text else where


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Convert out-of-memory errors inside the block to an InputError that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not may_be_out_of_memory(error):
            raise
        raise InputError(f"{memory_line(error)}; {advice}") from error
