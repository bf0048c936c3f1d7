"""Recognising that memory is used up, in all the words that torch, its libraries and the host have for it.

torch raises OutOfMemoryError where its own allocator fails. A library that allocates by itself, a kernel that is loaded
late, page-locked host memory, NCCL and other kinds of devices raise a plain RuntimeError, known by its text alone.
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
# Said mostly, but not only, where a library found no room for its workspace.
_LIKELY = re.compile(
    r"(CUBLAS|HIPBLAS|CUDNN|CUSOLVER)_STATUS_NOT_INITIALIZED"
    r"|unable to find an engine to execute|Unable to find a valid cuDNN algorithm|OUT_OF_RESOURCES"
)
# After these every call on the device fails, whatever it says then.
_BROKEN_DEVICE = re.compile(
    r"illegal (memory access|instruction|address)|device-side assert|unspecified launch failure|misaligned address"
    r"|invalid program counter|hardware stack error|uncorrectable|launch timed out|context is destroyed|unknown error"
    r"|bus error|GPU is lost|fallen off the bus",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the device or the host has no memory left."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError) or _BROKEN_DEVICE.search(str(error)):
        return False
    # by name: this module is imported where torch is not
    return type(error).__name__ == "OutOfMemoryError" or _CERTAIN.search(str(error)) is not None


def may_be_out_of_memory(error: BaseException) -> bool:
    """The same, or an error that has this cause most of the time: worth another try with less, but no verdict."""
    is_likely = isinstance(error, RuntimeError) and not _BROKEN_DEVICE.search(str(error))
    return is_out_of_memory(error) or (is_likely and _LIKELY.search(str(error)) is not None)


def memory_line(error: BaseException) -> str:
    """The fault in a few words, for a message that goes on with what to do."""
    text = one_line(error)[:160]
    where = "host memory is used up" if isinstance(error, MemoryError) else "memory is used up"
    return f"{where} ({text})" if text else where


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Turn a lack of memory inside the block into an InputError that ends with `advice`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not may_be_out_of_memory(error):
            raise
        raise InputError(f"{memory_line(error)}; {advice}") from error
