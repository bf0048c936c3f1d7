"""A model's passes over one sample with vision tokens replaced, by its own methods and plain loops."""

import math
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example


def focus_tokens(model: VisionLanguageModel, example: Example, share: float) -> list[int]:
    """The share of the vision tokens that the text attends to most."""
    batch, at = collate_sequences([example]), example.positions
    vision = model.encode_images(batch.images, [0] * len(batch.images))
    with model.watched_first_layer() as layer:
        model.hidden_states(batch, vision)
    rows, cols = (torch.tensor(where.tolist())[None] for where in (at.tqv_query_positions, at.vision_positions))
    scores = layer.attention(rows, cols)[0].mean(0).sum(0).tolist()
    return sorted(range(len(scores)), key=lambda token: (-scores[token], token))[: math.ceil(share * len(scores))]


def logprobs_without(
    model: VisionLanguageModel, example: Example, replaced: Collection[int], num_tokens: int | None = None
) -> Tensor:
    """Log-probabilities [N, V] at the supervised positions, with these vision tokens replaced by a plain picture's."""
    batch = collate_sequences([example])
    owner = [0] * len(batch.images)
    plain = [{n: v * 0 + 1 / 64 if v.is_floating_point() else v for n, v in image.items()} for image in batch.images]
    vision = model.encode_images(batch.images, owner)
    with torch.no_grad():
        grey = model.encode_images(plain, owner)
    hidden_LD = model.hidden_states(batch, _exchanged(vision, grey, replaced))[0]
    logits_NV = model.head(hidden_LD[example.positions.supervised_positions.tolist()])
    return logits_NV[:, :num_tokens].log_softmax(-1)


def _exchanged(vision: Vision, other: Vision, tokens: Collection[int]) -> Vision:
    def rows(own: Tensor, others: Tensor) -> Tensor:
        return torch.stack([others[n] if n in tokens else own[n] for n in range(len(own))])

    features = {name: rows(values, other.per_token[name]) for name, values in vision.per_token.items()}
    return replace(vision, embeddings_PD=rows(vision.embeddings_PD, other.embeddings_PD), per_token=features)
