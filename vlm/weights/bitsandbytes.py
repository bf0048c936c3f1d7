"""The library of 8-bit and 4-bit layers and optimisers, which is imported only where one is used."""

import importlib
import logging
from typing import Any, Literal

from torch import nn

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.hardware.devices import Quantization

NF4_BLOCK = 64  # weights that share one float32 scale
INT8_OUTLIER = 6.0  # LLM.int8(): activations beyond it are multiplied in 16 bits (arXiv 2208.07339)


def without_advice() -> None:
    """Silence the advice on faster kernels that bitsandbytes logs when it is imported, also by peft."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def bitsandbytes_module(setting: str, *, otherwise: str) -> Any:
    """The module `bitsandbytes`.

    Args:
        setting: name and value of the setting that needs it, for the message of an error.
        otherwise: what to do without it.

    Raises:
        InputError: it is not installed or does not work here.
    """
    without_advice()
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise InputError(
            f"{setting} needs bitsandbytes, which is not installed; `pip install 'alignkd[quantized]'`, or {otherwise}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{setting}: bitsandbytes does not work here ({one_line(error)[:160]}); install a build for your GPU, or "
            f"{otherwise}"
        ) from error


def quantization_library(kind: Quantization) -> Any:
    """The module `bitsandbytes`, for weights in 8 or 4 bits.

    Raises:
        InputError: it is not installed or does not work here.
    """
    return bitsandbytes_module(f"quantization {kind!r}", otherwise="set quantization to 'none'")


def keep_layout(layer: Any) -> Any:
    """The layer, without the packing for inference on CPUs, from which no gradient can be computed."""
    layer.support_avx512bf16_for_cpu = False
    return layer


def quantized_bytes(linear: nn.Linear, kind: Literal["int8", "nf4"]) -> int:
    """Bytes of a layer's quantised weight and its scales."""
    count = linear.weight.numel()
    return count + 4 * linear.out_features if kind == "int8" else -(-count // 2) + 4 * -(-count // NF4_BLOCK)
