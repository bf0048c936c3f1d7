"""Decoder layers that torch compiles: one kernel for each run of elementwise operations."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.kernels.layer_run import layer_run

# Variants of a layer: one sample or several, with gradient or without, with a mask or without, kinds of attention.
# torch's own limit is 8; beyond it layers run uncompiled.
MAX_VARIANTS = 64
BACKEND = "inductor"


def compile_layers(layers: Sequence[nn.Module]) -> str:
    """Compile the forward function of each layer when it first runs; layers of the same kind share the result.

    Shapes are dynamic, so other lengths do not compile again. Layers draw the same random numbers as uncompiled ones.
    """
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    torch._inductor.config.fallback_random = True
    for layer in layers:
        run = layer_run(layer)
        run.compiled = torch.compile(run.plain, dynamic=True, backend=BACKEND)
    return f"kernels compile: {len(layers)} decoder layers are compiled when they first run"


def check_compiler(device: torch.device) -> None:
    """Compile a small function for this kind of device.

    Raises:
        InputError: that fails, for example without a compiler for C++.
    """
    _check_compiler(device.type)


@cache
def _check_compiler(device: str) -> None:
    try:
        torch.compile(_small, dynamic=True, backend=BACKEND)(torch.ones(2, 2, device=device))
    except Exception as error:  # the compiler's errors have no common class
        raise InputError(
            f"kernels 'compile': torch cannot compile for {device} here ({type(error).__name__}: "
            f"{one_line(error)[:200]}); install a C++ compiler and the headers of Python, or set kernels to 'torch'"
        ) from error


def _small(values: torch.Tensor) -> torch.Tensor:
    return (values * 2).sin() + 1
