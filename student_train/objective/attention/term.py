"""The attention term (eq. 1 and other forms) for any layers, some rows at a time: no whole attention map is in memory.

Shape letters as in `alignkd.student_train.data.targets`; r rows of a chunk, Hs heads of the student, S heads that are
compared: Hs or 1.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.data.attention_source import stored_attention
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.attention.fused import fused_attention_loss
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention.map_losses import chunked_map_loss
from alignkd.student_train.objective.attention.match import (
    MAP_FORMS,
    AttentionForm,
    AttentionMatch,
    FixedHeads,
    HeadWeights,
    LayerPair,
)
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.term import ForwardPass, idle
from alignkd.vlm.attention.attention_rows import RowInputs
from alignkd.vlm.families.family import ModelConfig


def attention_term(forward: ForwardPass) -> LossSum:
    """Difference between the attention of the adapted teacher and of the student, over all pairs of layers."""
    targets, match = forward.batch.attention, forward.attention
    if targets is None:
        return idle(forward.adapters.adapt_no_attention(), forward)
    losses = [_loss_of_pair(forward, targets, match, place) for place in range(len(match.pairs))]
    if len(losses) == 1:
        return losses[0]
    return LossSum(
        torch.stack([loss.total for loss in losses]).sum(),
        sum(loss.count for loss in losses),
        torch.stack([loss.parts for loss in losses]).sum(0),
        by_layer={pair.student: loss.total.detach() for pair, loss in zip(match.pairs, losses, strict=True)},
    )


def attention_elements(reader: StoreReader, student: ModelConfig, match: AttentionMatch) -> NDArray[np.int64]:
    """Elements of each sample; 0 for a sample without an image.

    They are attention rows times columns (`mse`), rows (`kl`, `row_cosine`) or maps (`cosine`, `filtered_cosine`),
    times compared heads times pairs of layers.
    """
    stored = stored_attention(reader.manifest, of_layers=match.of_layers)
    vision, images = reader.num_vision, reader.has_image.astype(np.int64)
    by_image = stored.by_image and reader.manifest.shapes.vision_tokens is not None
    rows, pairs = np.zeros_like(vision), np.zeros_like(vision)
    for kind in stored.pairs:
        rows_of_kind = vision if kind == "vqv" else reader.num_queries
        columns = reader.sequence_lengths - vision if kind == "tqt" else vision
        rows = rows + rows_of_kind * (reader.num_images if by_image and kind != "tqt" else 1)
        pairs = pairs + rows_of_kind * columns
    elements: NDArray[np.int64] = rows
    if match.form == "mse":
        elements = pairs
    elif match.form in MAP_FORMS:
        elements = np.minimum(rows, 1)
    elements = elements * (len(match.pairs) * match.compared_heads(student.num_heads)) * images
    return elements


def chunked_attention_loss(pair: RowsOfPair, inputs: RowInputs, *, chunk_bytes: int) -> LossSum:
    """The difference between the adapted teacher's attention and the student's; its parts are the blocks.

    Args:
        inputs: the student's queries of the targets' rows, and keys of all positions.
        chunk_bytes: largest size in float32 of a chunk's attention over all positions and of its targets; a chunk has
            at least one row.
    """
    targets = pair.targets
    num, _, _, cols = targets.stored_BRHC.shape
    heads, length = inputs.key_BHLd.shape[1:3]
    at_once = max(1, chunk_bytes // (4 * num * max(heads * length, targets.num_heads * cols)))
    total, parts_B = fused_attention_loss(
        inputs,
        targets.cols_BC,
        pair.loss_of_rows,
        pair.heads.parameters,
        rows_at_once=at_once,
        num_cols_B=targets.cols_B if pair.form == "kl" else None,
    )
    compared = 1 if pair.heads.of_mean else heads
    return LossSum(total, compared * _elements(targets, pair.form), parts_B)


def _loss_of_pair(forward: ForwardPass, targets: AttentionTargets, match: AttentionMatch, place: int) -> LossSum:
    layers: LayerPair = match.pairs[place]
    inputs = forward.layers[layers.student].row_inputs(targets.rows_BR, targets.samples_B)
    _check_has_gradient(inputs, layers.student)
    pair = RowsOfPair(
        targets=targets,
        teacher=layers.teacher,
        heads=head_weights(forward.adapters, forward.fixed_heads, match, place),
        form=match.form,
        reference=None if forward.references is None else forward.references.of_pair(place),
        vision_BR=_vision_rows(forward, targets) if match.form == "filtered_cosine" else None,
    )
    chunk_bytes = forward.attention_chunk_bytes
    if match.form in MAP_FORMS:
        return chunked_map_loss(pair, inputs, forward.num_samples, chunk_bytes=chunk_bytes)
    loss = chunked_attention_loss(pair, inputs, chunk_bytes=chunk_bytes)
    return loss if targets.samples_B is None else loss.by_sample(targets.samples_B, forward.num_samples)


def _vision_rows(forward: ForwardPass, targets: AttentionTargets) -> Tensor:
    """bool [B, R], which rows are vision tokens."""
    vision_BL = forward.batch.sequences.vision_mask_BL
    vision_BL = vision_BL if targets.samples_B is None else vision_BL[targets.samples_B]
    return vision_BL.gather(1, targets.rows_BR)


def head_weights(adapters: Adapters, fixed: FixedHeads | None, match: AttentionMatch, place: int) -> HeadWeights:
    """The mixture of the teacher's heads for the pair at a place in `match.pairs`."""
    if fixed is not None:
        return HeadWeights(weight_ST=fixed.weight_ST, of_mean=match.heads == "mean")
    weight_ST, bias_S = adapters.attention_weights(place)
    return HeadWeights(weight_ST=weight_ST, bias_S=bias_S)


def _elements(targets: AttentionTargets, form: AttentionForm) -> int:
    """Elements of one head."""
    if form == "mse":
        return sum(rows * cols for rows, cols in zip(targets.num_rows_B, targets.num_cols_B, strict=True))
    return sum(rows for rows, cols in zip(targets.num_rows_B, targets.num_cols_B, strict=True) if cols)


def _check_has_gradient(inputs: RowInputs, layer: int) -> None:
    """Refuse queries and keys that were recorded without gradient: reentrant gradient checkpointing loses it silently.

    Raises:
        TrainError: the attention loss would not train the decoder.
    """
    if torch.is_grad_enabled() and not (inputs.query_BHRd.requires_grad or inputs.key_BHLd.requires_grad):
        raise TrainError(
            f"losses.attention: queries and keys of decoder layer {layer} were recorded without gradient, so the loss "
            "would not train the student; train what they depend on (student.trained), switch off the model's own "
            "gradient checkpointing (train.gradient_checkpointing does not need it) or set losses.attention to 0"
        )
