"""Greedy generation with the model's own rules for cache, positions and type ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkd.vlm.errors import InputError
from alignkd.vlm.finite import is_finite
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example

if TYPE_CHECKING:
    from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel


@torch.no_grad()
def greedy_tokens(model: HuggingFaceModel, prompts: Sequence[Example]) -> Iterator[Tensor]:
    """Endless stream of the most probable next token of each prompt; see `VisionLanguageModel.next_tokens`."""
    batch = collate_sequences(prompts).to(model.device)
    vision = model.encode_images(batch.images, batch.image_samples_I.tolist()) if batch.images else None
    model.forget_positions()
    inner: Any = model.model
    ids_BL = batch.input_ids_BL
    inputs = {**model.decoder_inputs(batch, vision), "use_cache": True}
    for name in ("input_ids", "attention_mask"):  # prompts have equal length, so nothing is padded
        inputs.pop(name, None)
    is_first = True
    while True:
        # the family's own methods: type ids of new tokens and positions with a cache differ between families
        arguments = inner.prepare_inputs_for_generation(
            ids_BL, next_sequence_length=None if is_first else 1, is_first_iteration=is_first, **inputs
        )
        output = inner(**arguments, return_dict=True)
        logits_BV = output.logits[:, -1]
        if not is_finite(logits_BV):
            raise InputError(
                f"the logits are not finite (NaN or infinity) in {str(logits_BV.dtype).removeprefix('torch.')}; the "
                "checkpoint's training diverged, or its values do not fit: try dtype float32"
            )
        next_B = logits_BV.argmax(dim=-1)
        yield next_B
        inputs = inner._update_model_kwargs_for_generation(output, inputs)
        ids_BL, is_first = torch.cat([ids_BL, next_B[:, None]], dim=1), False
