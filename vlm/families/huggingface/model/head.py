"""The output head of a model of transformers, with the scale and the soft cap of its logits."""

from typing import Any

from torch import Tensor

from alignkd.vlm.families.family import Head
from alignkd.vlm.families.huggingface.model.parts import text_config_of


def head_of(model: Any) -> Head:
    """The head as the configuration describes it; the self-check compares it with the model's own logits."""
    output = model.get_output_embeddings()
    return described_head(model.config, output.weight, getattr(output, "bias", None))


def described_head(config: Any, weight_VD: Tensor, bias_V: Tensor | None) -> Head:
    """A head with the scale and soft cap of a model's configuration."""
    settings = text_config_of(config)
    divisor, factor = (getattr(settings, name, None) for name in ("logits_scaling", "logit_scale"))
    softcap = getattr(settings, "final_logit_softcapping", None)
    return Head(
        weight_VD=weight_VD,
        bias_V=bias_V,
        scale=(1.0 if factor is None else float(factor)) / (1.0 if divisor is None else float(divisor)),
        softcap=None if softcap is None else float(softcap),
    )
