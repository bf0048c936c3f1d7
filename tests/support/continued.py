"""Prompts with generated tokens after them, for one forward pass over the whole text."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL


def followed_by(prompt: Example, ids: Sequence[int], *, type_of_new: int = 0) -> Example:
    """The prompt and text tokens after it, without labels."""
    before, more = prompt.positions, len(ids)
    added = np.arange(before.length, before.length + more, dtype=np.int32)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, np.asarray(ids, np.int32)]),
        labels=np.full(len(prompt.input_ids) + more, IGNORE_LABEL, np.int32),
        positions=replace(
            before, length=before.length + more, text_positions=np.concatenate([before.text_positions, added])
        ),
        types={
            name: np.concatenate([types, np.full(more, type_of_new, np.int32)]) for name, types in prompt.types.items()
        },
    )


@torch.no_grad()
def teacher_forced_logprob(
    model: VisionLanguageModel,
    prompt: Example,
    ids: Sequence[int],
    *,
    num_tokens: int | None = None,
    type_of_new: int = 0,
) -> float:
    """Sum of the log-probabilities of `ids` after `prompt`, from one pass without a cache."""
    batch = collate_sequences([followed_by(prompt, ids, type_of_new=type_of_new)])
    samples = batch.image_samples_I.tolist()
    vision = model.encode_images(batch.images, samples) if batch.images else None
    logits_LV = model.head(model.hidden_states(batch, vision)[0])[:, :num_tokens]
    places = torch.arange(len(ids)) + prompt.positions.length - 1
    return float(logits_LV.double().log_softmax(-1)[places, list(ids)].sum())
