"""The output head of a model of transformers, with the scale and the soft cap of its logits."""

from typing import Any

from alignkd.vlm.families.family import Head
from alignkd.vlm.families.huggingface.model.parts import text_config_of


def head_of(model: Any) -> Head:
    """The head as the configuration describes it; the self-check compares it with the model's own logits."""
    output = model.get_output_embeddings()
    settings = text_config_of(model.config)
    divisor, factor = (getattr(settings, name, None) for name in ("logits_scaling", "logit_scale"))
    softcap = getattr(settings, "final_logit_softcapping", None)
    return Head(
        weight_VD=output.weight,
        bias_V=getattr(output, "bias", None),
        scale=(1.0 if factor is None else float(factor)) / (1.0 if divisor is None else float(divisor)),
        softcap=None if softcap is None else float(softcap),
    )
