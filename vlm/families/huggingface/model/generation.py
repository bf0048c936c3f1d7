"""Generation with the model's own rules for cache, positions and type ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from alignkd.vlm.families.family import Decoding, Vision
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example

if TYPE_CHECKING:
    from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel


@torch.no_grad()
def decoding(model: HuggingFaceModel, prompts: Sequence[Example], vision: Vision | None = None) -> Decoding:
    """Logits of next tokens for chosen ones; see `VisionLanguageModel.decoding`. Shorter prompts are padded left.

    These are the steps of `generate` of transformers, whose loop cannot wait for tokens that are chosen elsewhere.
    """
    batch = collate_sequences(prompts).padded_left()
    is_padded = batch.is_padded
    batch = batch.to(model.device)
    if vision is None and batch.images:
        vision = model.encode_images(batch.images, batch.image_samples_I.tolist())
    model.forget_positions()
    inner: Any = model.model
    ids_BL = batch.input_ids_BL
    inputs = {**model.decoder_inputs(batch, vision), "use_cache": True}
    for name in ("input_ids", "attention_mask"):
        inputs.pop(name, None)
    if inner._supports_logits_to_keep():
        inputs["logits_to_keep"] = 1  # the logits of a whole prompt can be larger than the model
    if is_padded:
        inputs["attention_mask"] = batch.attention_mask_BL
        inputs["position_ids"] = inner._prepare_position_ids_for_generation(ids_BL, inputs)
    is_first = True
    while True:
        # the family's own methods: type ids of new tokens and positions with a cache differ between families
        arguments = inner.prepare_inputs_for_generation(
            ids_BL, next_sequence_length=None if is_first else 1, is_first_iteration=is_first, **inputs
        )
        output = inner(**arguments, return_dict=True)
        tokens_B = yield output.logits[:, -1]
        inputs = inner._update_model_kwargs_for_generation(output, inputs)
        ids_BL, is_first = torch.cat([ids_BL, tokens_B[:, None]], dim=1), False
