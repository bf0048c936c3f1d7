"""Triton's interpreter as tests of Liger need it: import this before anything that imports triton.

The interpreter runs kernels on the CPU, with numpy. Two things differ from a device and are mended here. It passes a
Python float as it is, where a kernel on a device gets a float32 scalar with a tensor's methods. And the functions of
CUDA's device library, of which Liger uses two, return None.
"""

import os
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime import interpreter


@triton.jit
def _rsqrt(x: Any) -> Any:
    return tl.rsqrt(x)


@triton.jit
def _tanh(x: Any) -> Any:
    return 2 * tl.sigmoid(2 * x) - 1


def _with_floats(argument: Any) -> Any:
    if not isinstance(argument, float):
        return _own(argument)
    return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)


_own = interpreter._implicit_cvt
interpreter._implicit_cvt = _with_floats
libdevice.rsqrt, libdevice.tanh = _rsqrt, _tanh
