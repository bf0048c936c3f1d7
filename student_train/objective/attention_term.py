"""Eq. 1 on stored targets, some rows at a time: the attention of neither side is ever held as a whole.

Shape letters as in `alignkd.student_train.data.targets`; r rows of a chunk, Hs heads of the student.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.attention import attention_loss
from alignkd.student_train.losses.fused_attention import fused_attention_loss
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.term import ForwardPass, idle
from alignkd.vlm.attention.attention_rows import RowInputs
from alignkd.vlm.families.family import ModelConfig


def attention_term(forward: ForwardPass) -> LossSum:
    """Squared error between the adapted teacher's first-layer attention and the student's."""
    targets, first_layer = forward.batch.attention, forward.first_layer
    if targets is None:
        return idle(forward.adapters.adapt_no_attention(), forward)
    inputs = first_layer.row_inputs(targets.rows_BR, targets.samples_B)
    _check_has_gradient(inputs)
    loss = chunked_attention_loss(forward.adapters, targets, inputs, chunk_bytes=forward.attention_chunk_bytes)
    return loss if targets.samples_B is None else loss.by_sample(targets.samples_B, forward.num_samples)


def attention_elements(reader: StoreReader, student: ModelConfig) -> NDArray[np.int64]:
    """Attention rows times columns times student heads of each sample; 0 for a sample without an image."""
    pairs, vision_of_sample = reader.manifest.codecs.attention_pairs, reader.num_vision
    if pairs == "vqv":
        num_pairs = vision_of_sample**2
    elif pairs == "tqt":
        num_pairs = reader.num_queries * (reader.sequence_lengths - vision_of_sample)
    else:
        num_pairs = reader.num_queries * vision_of_sample
    return student.num_heads * reader.has_image.astype(np.int64) * num_pairs


def chunked_attention_loss(
    adapters: Adapters, targets: AttentionTargets, inputs: RowInputs, *, chunk_bytes: int
) -> LossSum:
    """Squared error between the adapted teacher's attention and the student's; its parts are the blocks.

    Args:
        inputs: the student's queries of the targets' rows, and keys of all positions.
        chunk_bytes: largest size in float32 of a chunk's attention over all positions and of its targets; a chunk has
            at least one row.
    """
    coded_BRHC = targets.stored_BRHC
    num, _, teacher_heads, cols = coded_BRHC.shape
    heads, length = inputs.key_BHLd.shape[1:3]
    at_once = max(1, chunk_bytes // (4 * num * max(heads * length, teacher_heads * cols)))

    def loss_of(student_BHrC: Tensor, rows: slice, weight_ST: Tensor, bias_S: Tensor) -> Tensor:
        teacher_BrTC = coded_BRHC.rows(rows).decode().to(weight_ST.dtype)
        adapted_BrHC = weight_ST @ teacher_BrTC + bias_S[:, None]
        num_rows_B = [min(max(total - rows.start, 0), at_once) for total in targets.num_rows_B]
        return attention_loss(adapted_BrHC.transpose(1, 2), student_BHrC, num_rows_B, targets.num_cols_B).parts

    total, parts_B = fused_attention_loss(
        inputs, targets.cols_BC, loss_of, adapters.attention_weights(), rows_at_once=at_once
    )
    pairs = sum(rows * cols for rows, cols in zip(targets.num_rows_B, targets.num_cols_B, strict=True))
    return LossSum(total, pairs * heads, parts_B)


def _check_has_gradient(inputs: RowInputs) -> None:
    """Refuse queries and keys that were recorded without gradient: reentrant gradient checkpointing loses it silently.

    Raises:
        TrainError: the attention loss would not train the decoder.
    """
    if torch.is_grad_enabled() and not (inputs.query_BHRd.requires_grad or inputs.key_BHLd.requires_grad):
        raise TrainError(
            "losses.attention: the first layer's queries and keys were recorded without gradient, so the loss would "
            "not train the student; train what they depend on (student.trained), switch off the model's own gradient "
            "checkpointing (train.gradient_checkpointing does not need it) or set losses.attention to 0"
        )
