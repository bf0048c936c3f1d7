"""Lack of memory in all the words there are for it, and the faults that must not be taken for it."""

import numpy as np
import pytest
import torch

from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.memory_faults import is_out_of_memory, may_be_out_of_memory, memory_errors, memory_line

CERTAIN = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cudaErrorMemoryAllocation: out of resources",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "Triton Error [CUDA]: out of memory",
    "NCCL error in: ProcessGroupNCCL.cpp:2351, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "HIP error: out of memory",
    "hipErrorOutOfMemory",
    "XPU out of memory. Tried to allocate 1.00 GiB",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "MPS backend out of memory (MPS allocated: 17.06 GiB)",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
    "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate",
    "unable to mmap 1024 bytes from file </weights>: Cannot allocate memory (12)",
    "std::bad_alloc",
)
LIKELY = (
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "FIND was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "Native API failed. Native API returns: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
)
OTHER = (
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",  # a shape or layout that it does not take, whatever is free
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: an illegal memory access was encountered; out of memory",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED after an illegal memory access",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "DataLoader worker (pid 3) is killed by signal: Bus error. out of shared memory",
    "out of resource: shared memory, Required: 131072, Hardware limit: 101376",
)


@pytest.mark.parametrize("message", CERTAIN)
def test_every_word_for_it_is_known(message: str) -> None:
    for kind in (RuntimeError, torch.AcceleratorError):
        assert is_out_of_memory(kind(message)) and may_be_out_of_memory(kind(message))
    assert not is_out_of_memory(ValueError(message))


@pytest.mark.parametrize("message", LIKELY)
def test_what_is_mostly_said_for_it_is_no_verdict(message: str) -> None:
    assert may_be_out_of_memory(RuntimeError(message)) and not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", OTHER)
def test_other_faults_are_not_taken_for_it(message: str) -> None:
    assert not may_be_out_of_memory(RuntimeError(message)) and not is_out_of_memory(RuntimeError(message))


def test_classes_of_their_own_are_known_too() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no words"))
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**62, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**62, np.uint8)
    assert is_out_of_memory(of_torch.value) and is_out_of_memory(of_numpy.value)
    assert memory_line(of_numpy.value).startswith("out of host memory (Unable to allocate")
    assert memory_line(MemoryError()) == "out of host memory"


def test_lack_of_memory_is_one_line_with_the_next_step() -> None:
    message = r"out of memory \(CUDA error: out of memory\); lower the batch"
    with pytest.raises(InputError, match=message), memory_errors("lower the batch"):
        raise RuntimeError("CUDA error: out of memory")
    with pytest.raises(RuntimeError, match="illegal"), memory_errors("lower the batch"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
