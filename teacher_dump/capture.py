"""One teacher forward and everything a student must learn from it.

Shapes: B samples (I with an image), L positions, R attention rows, C attention columns, P vision tokens, Ht heads,
Dt hidden size, N supervised positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from teacher_dump.focus import focus_tokens
from vlm.batch import collate_sequences, pad_positions
from vlm.examples import Example
from vlm.model import MobileVLM
from vlm.position_map import AttentionPairs


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The teacher's outputs for one sample; the vision fields are None without an image and on the CPU.

    Attributes:
        attention_HRC: float32, layer 0, for the chosen pairs of queries and keys.
        vision_embeddings_PD: projector output, in the teacher's dtype.
        focus_index: int64 [16], eq. 2.
        hidden_ND: after the final norm, at supervised positions, in the teacher's dtype and on its device: what is kept
            of the logits is decided there (`distribution.py`).
        next_labels_N: int64, on the same device.
    """

    attention_HRC: Tensor | None
    vision_embeddings_PD: Tensor | None
    focus_index: Tensor | None
    hidden_ND: Tensor
    next_labels_N: Tensor


@torch.no_grad()
def capture(model: MobileVLM, examples: Sequence[Example], pairs: AttentionPairs) -> list[Targets]:
    """Run the teacher on `examples` as one batch and take the targets of each."""
    batch = collate_sequences(examples).to(model.device)
    vision_IPD = None if batch.pixel_values_ICHW is None else model.encode_images(batch.pixel_values_ICHW)
    embeds_BLD = model.embed(batch, vision_IPD)
    hidden_BLD = model.hidden_states(embeds_BLD)
    sizes = [len(example.positions.supervised_positions) for example in examples]
    hidden = hidden_BLD[batch.supervised_mask_BL].split(sizes)
    labels = batch.supervised_labels_N.split(sizes)
    attention, focus = _attention(model, examples, embeds_BLD[batch.image_samples_I], pairs)
    image_of = {sample: image for image, sample in enumerate(batch.image_samples_I.tolist())}
    return [
        Targets(
            attention_HRC=attention[image_of[sample]] if sample in image_of else None,
            vision_embeddings_PD=vision_IPD[image_of[sample]].cpu()
            if vision_IPD is not None and sample in image_of
            else None,
            focus_index=focus[image_of[sample]] if sample in image_of else None,
            hidden_ND=hidden[sample],
            next_labels_N=labels[sample],
        )
        for sample in range(len(examples))
    ]


def _attention(
    model: MobileVLM, examples: Sequence[Example], embeds_ILD: Tensor, pairs: AttentionPairs
) -> tuple[list[Tensor], list[Tensor]]:
    """Attention [Ht, R, C] and focus tokens of each sample that has an image."""
    maps = [example.positions for example in examples if len(example.positions.vision_positions)]
    if not maps:
        return [], []

    def rows_to_cols(kind: AttentionPairs) -> list[Tensor]:
        rows_IR, row_mask_IR = pad_positions([positions.attention_rows(kind) for positions in maps])
        cols_IC, col_mask_IC = pad_positions([positions.attention_cols(kind) for positions in maps])
        probs_IHRC = model.first_layer_attention(embeds_ILD, rows_IR.to(model.device), cols_IC.to(model.device)).cpu()
        return [
            probs_HRC[:, row_mask][:, :, col_mask]
            for probs_HRC, row_mask, col_mask in zip(probs_IHRC, row_mask_IR, col_mask_IC, strict=True)
        ]

    tqv = rows_to_cols("tqv")
    attention = tqv if pairs == "tqv" else rows_to_cols(pairs)
    return attention, [focus_tokens(tqv_HQP) for tqv_HQP in tqv]
