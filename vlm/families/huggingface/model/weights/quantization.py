"""A model in 8 or 4 bits, a teacher or a student that trains only LoRA: bitsandbytes' own linear layers.

The layers up to the one that targets are taken from, tower, projector, embeddings and head keep full precision. So
attention and vision targets equal those of the unquantised model; only the logits have a quantisation error.
"""

from typing import Any, Literal

import torch
from torch import nn

from alignkd.vlm.families.huggingface.model.parts import layers_of
from alignkd.vlm.weights.bitsandbytes import INT8_OUTLIER, NF4_BLOCK, keep_layout, quantization_library

ROWS = 32  # on CPUs with AVX-512, bitsandbytes packs so many rows together


def quantize(model: Any, kind: Literal["int8", "nf4"], *, after: int, dtype: torch.dtype, device: torch.device) -> int:
    """Replace the linear layers of the decoder layers behind number `after`, one at a time.

    Args:
        model: a model of transformers on the CPU.
        dtype: dtype of activations.
        device: device of the quantised weights.

    Returns:
        Number of weights that were quantised.

    Raises:
        InputError: bitsandbytes is not installed or does not work here.
    """
    library = quantization_library(kind)
    count = 0
    for layer in layers_of(model)[after + 1 :]:
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear and is_quantizable(module):
                layer.set_submodule(name, _quantized(library, module, kind, dtype, device))
                count += module.weight.numel()
    return count


def is_quantizable(linear: nn.Linear) -> bool:
    """Whether bitsandbytes can multiply by its quantised weights on every device.

    Others are gates of a few rows, for example; they keep full precision.
    """
    return linear.in_features % NF4_BLOCK == 0 and linear.out_features % ROWS == 0


def _quantized(library: Any, linear: nn.Linear, kind: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    common = {
        "input_features": linear.in_features,
        "output_features": linear.out_features,
        "bias": linear.bias is not None,
        "device": "meta",
    }
    module: Any
    if kind == "int8":
        module = library.nn.Linear8bitLt(**common, has_fp16_weights=False, threshold=INT8_OUTLIER)
        weight = library.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        # the scales are not quantised again: it would save 0.4 bits per weight and cost precision
        module = library.nn.Linear4bit(**common, compute_dtype=dtype, compress_statistics=False, quant_type="nf4")
        keep_layout(module)
        weight = library.nn.Params4bit(
            linear.weight.data,
            requires_grad=False,
            quant_type="nf4",
            blocksize=NF4_BLOCK,
            compress_statistics=False,
            module=module,
        )
    module.weight = weight.to(device)  # quantised by this transfer
    if linear.bias is not None:
        module.bias = nn.Parameter(linear.bias.data.to(device), requires_grad=False)
    replacement: nn.Module = module
    return replacement
