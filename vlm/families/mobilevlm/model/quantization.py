"""A model in 8 or 4 bits, so that a 7B model fits a small GPU: a teacher, or a student that trains only LoRA.

Only the linear layers of the decoder are quantised. Vision tower, projector, embeddings and `lm_head` keep full
precision. So do `q_proj` and `k_proj` of layer 0, which are 0.5 % of the decoder: with the embeddings they decide the
first layer's attention, which is a target of Align-KD. So attention and vision targets equal those of the unquantised
model; only the logits have a quantisation error.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.hardware.devices import Quantization
from alignkd.vlm.weights.bitsandbytes import INT8_OUTLIER, NF4_BLOCK, keep_layout, quantization_library

DECODER_PREFIX = "model.layers."
FULL_PRECISION = frozenset({"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"})


def quantizable(model: MobileVLM) -> Iterator[tuple[str, nn.Linear]]:
    """Name and module of each layer that quantisation replaces."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(DECODER_PREFIX) and name not in FULL_PRECISION:
            yield name, module


class Quantizer:
    """Replace the decoder's linear layers of a model on the meta device, and fill them one weight at a time.

    Args:
        model: model on the meta device; its layers are replaced here, `take` sets their weights.
        kind: `none` does nothing.
        dtype: dtype of activations and of unquantised weights.
        device: device of the quantised weights.

    Raises:
        InputError: bitsandbytes is not installed or does not work here.
    """

    def __init__(self, model: MobileVLM, kind: Quantization, *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device, self._kind = dtype, device, kind
        self._modules: dict[str, Any] = {}
        if kind == "none":
            return
        self._bnb = quantization_library(kind)
        for name, linear in list(quantizable(model)):
            replacement = self._empty(linear)
            model.set_submodule(name, replacement)
            self._modules[f"{name}.weight"] = replacement

    def take(self, key: str, weight: Tensor) -> bool:
        """Quantise `weight` into its layer and return True; return False if `key` is not quantised."""
        if (module := self._modules.get(key)) is None:
            return False
        if self._kind == "int8":
            parameter = self._bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            parameter = self._bnb.nn.Params4bit(
                weight.to(self._dtype),
                requires_grad=False,
                quant_type="nf4",
                blocksize=NF4_BLOCK,
                compress_statistics=False,
                module=module,
            )
        module.weight = parameter.to(self._device)  # quantised by this transfer
        return True

    def _empty(self, linear: nn.Linear) -> Any:
        shape = {"input_features": linear.in_features, "output_features": linear.out_features}
        common = {"bias": linear.bias is not None, "device": "meta"}
        if self._kind == "int8":
            return self._bnb.nn.Linear8bitLt(**shape, **common, has_fp16_weights=False, threshold=INT8_OUTLIER)
        # The scales are not quantised again: it would save 0.4 bits per weight and cost precision.
        return keep_layout(
            self._bnb.nn.Linear4bit(
                **shape, **common, compute_dtype=self._dtype, compress_statistics=False, quant_type="nf4"
            )
        )
