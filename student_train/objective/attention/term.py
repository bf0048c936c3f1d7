"""The attention term (eq. 1 and other forms) for any layers, some rows at a time: no whole attention map is in memory.

Shape letters as in `alignkd.student_train.data.targets`; r rows of a chunk, Hs heads of the student, S heads that are
compared: Hs or 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.data.attention_source import stored_attention
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.attention.forms import kl_with_rest, row_cosine
from alignkd.student_train.losses.attention.fused import fused_attention_loss
from alignkd.student_train.losses.attention.maps import MapSums
from alignkd.student_train.losses.attention.squared_error import length_mask, squared_errors
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention.match import (
    AttentionForm,
    AttentionMatch,
    FixedHeads,
    HeadWeights,
    LayerPair,
)
from alignkd.student_train.objective.attention.row_reference import RowReference
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

    They are attention rows times columns (`mse`), rows (`kl`, `row_cosine`) or maps (`cosine`), times compared heads
    times pairs of layers.
    """
    stored = stored_attention(reader.manifest)
    vision, images = reader.num_vision, reader.has_image.astype(np.int64)
    by_image = stored.by_image and reader.manifest.shapes.vision_tokens is not None
    rows, pairs = np.zeros_like(vision), np.zeros_like(vision)
    for kind in stored.pairs:
        rows_of_kind = vision if kind == "vqv" else reader.num_queries
        columns = reader.sequence_lengths - vision if kind == "tqt" else vision
        rows = rows + rows_of_kind * (reader.num_images if by_image and kind != "tqt" else 1)
        pairs = pairs + rows_of_kind * columns
    elements: NDArray[np.int64] = {"mse": pairs, "cosine": np.minimum(rows, 1)}.get(match.form, rows)
    elements = elements * (len(match.pairs) * match.compared_heads(student.num_heads)) * images
    return elements


@dataclass(frozen=True, kw_only=True)
class RowsOfPair:
    """One pair of layers in one batch, and the measure of their difference."""

    targets: AttentionTargets
    teacher: tuple[int, ...]
    heads: HeadWeights
    form: AttentionForm = "mse"
    reference: RowReference | None = None

    def teacher_BSrC(self, rows: slice, weight_ST: Tensor, bias_S: Tensor | None = None) -> Tensor:
        """The adapted teacher's attention of some rows."""
        stored_BrTC = self._stored_BrTC(rows, weight_ST.dtype)
        # a product for each row: `@` would first copy the stored attention into another order
        stored_nTC = stored_BrTC.flatten(0, 1)
        weight_nST = weight_ST.expand(len(stored_nTC), -1, -1)
        if bias_S is None:
            mixed_nSC = torch.bmm(weight_nST, stored_nTC)
        else:
            mixed_nSC = torch.baddbmm(bias_S[:, None], weight_nST, stored_nTC)
        mixed_BSrC: Tensor = mixed_nSC.unflatten(0, stored_BrTC.shape[:2]).transpose(1, 2)
        return mixed_BSrC

    def _stored_BrTC(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """The mean of the teacher's layers."""
        first, *others = (self.targets.of_layer(layer).rows(rows).decode().to(dtype) for layer in self.teacher)
        for other in others:
            first = first + other
        return first / len(self.teacher) if others else first

    def loss_of_rows(self, chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> Tensor:
        """The sum over some rows of each block, as `fused_attention_loss` needs it."""
        weights = mixture or (self.heads.weight_ST,)
        teacher_BSrC = self.teacher_BSrC(rows, *weights)
        student_BSrC = self._compared(chosen_BHrC)
        real_Br = self.real_BR[:, rows]
        if self.form == "mse" and self.reference is None:
            return squared_errors(teacher_BSrC, student_BSrC, real_Br[:, :, None] & self.real_BC[:, None])
        teacher_BSrC, student_BSrC = self._without_padding(teacher_BSrC, student_BSrC)
        values_BSr = _ROW_LOSSES[self.form](teacher_BSrC, student_BSrC)
        if self.reference is not None:
            values_BSr = values_BSr * self.reference(self.weighed_rows(rows), self.targets.cols_B)
        return values_BSr.masked_fill(~real_Br[:, None], 0.0).sum((1, 2))

    def sums_of_rows(self, chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> MapSums:
        """What the cosine of maps needs of some rows."""
        weights = mixture or (self.heads.weight_ST,)
        teacher_BSrC, student_BSrC = self._without_padding(
            self.teacher_BSrC(rows, *weights), self._compared(chosen_BHrC)
        )
        padded = ~self.real_BR[:, None, rows, None]
        return MapSums.of_rows(teacher_BSrC.masked_fill(padded, 0.0), student_BSrC.masked_fill(padded, 0.0))

    def _compared(self, chosen_BHrC: Tensor) -> Tensor:
        """The student's attention, or the mean of its heads; logarithms in a loss of outcomes."""
        if not self.heads.of_mean:
            return chosen_BHrC
        if self.form == "kl":
            excluded = chosen_BHrC.isinf()  # of every head alike; a logarithm of 0 has no gradient
            sums_B1rC = chosen_BHrC.masked_fill(excluded, 0.0).logsumexp(1, keepdim=True)
            return (sums_B1rC - math.log(chosen_BHrC.shape[1])).masked_fill(excluded[:, :1], -torch.inf)
        return chosen_BHrC.mean(1, keepdim=True)

    def _without_padding(self, teacher_BSrC: Tensor, student_BSrC: Tensor) -> tuple[Tensor, Tensor]:
        """0 in padded columns; of outcomes, the padded columns of the teacher suffice."""
        padded = ~self.real_BC[:, None, None]
        student = student_BSrC if self.form == "kl" else student_BSrC.masked_fill(padded, 0.0)
        return teacher_BSrC.masked_fill(padded, 0.0), student

    def weighed_rows(self, rows: slice) -> Tensor:
        """The teacher's attention by which rows are weighed, [B, S or 1, r, C], 0 where columns are padded.

        It is what the student is compared with, but the mean of all heads if that is a trained mixture, which is no
        attention.
        """
        weight_ST = self.heads.weight_ST.detach()
        if self.heads.bias_S is None:
            teacher_BSrC = self.teacher_BSrC(rows, weight_ST)
        else:
            teacher_BSrC = self._stored_BrTC(rows, weight_ST.dtype).mean(2)[:, None]
        return self._without_padding(teacher_BSrC, teacher_BSrC)[0]

    @cached_property
    def real_BR(self) -> Tensor:
        """bool, which rows are no padding; made once for all chunks."""
        rows_BR = self.targets.rows_BR
        return length_mask(self.targets.rows_B, rows_BR.shape[1], rows_BR)

    @cached_property
    def real_BC(self) -> Tensor:
        """The same of columns."""
        cols_BC = self.targets.cols_BC
        return length_mask(self.targets.cols_B, cols_BC.shape[1], cols_BC)


_ROW_LOSSES: dict[AttentionForm, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda teacher_BSrC, student_BSrC: (teacher_BSrC - student_BSrC).square().sum(-1),
    "kl": kl_with_rest,
    "row_cosine": row_cosine,
}


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


def chunked_map_loss(pair: RowsOfPair, inputs: RowInputs, num_samples: int, *, chunk_bytes: int) -> LossSum:
    """1 - cosine of the maps of each sample and head; its parts are the samples. Arguments as above."""
    targets = pair.targets
    num, _, _, cols = targets.stored_BRHC.shape
    heads, length = inputs.key_BHLd.shape[1:3]
    at_once = max(1, chunk_bytes // (4 * num * max(heads * length, targets.num_heads * cols)))
    samples_B = targets.samples_B
    if samples_B is None:
        samples_B = torch.arange(num, device=targets.rows_BR.device)
    found: list[MapSums] = []

    def measure(chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> Tensor:
        found.append(pair.sums_of_rows(chosen_BHrC, rows, *mixture))
        return found[-1].product.sum(-1)

    parameters = pair.heads.parameters
    with torch.no_grad():
        fused_attention_loss(inputs, targets.cols_BC, measure, parameters, rows_at_once=at_once)
    sums = found[0]
    for more in found[1:]:
        sums = sums + more
    whole = sums.by_sample(samples_B, num_samples)
    total, _ = fused_attention_loss(
        inputs,
        targets.cols_BC,
        lambda chosen_BHrC, rows, *mixture: whole.linearised(samples_B, pair.sums_of_rows(chosen_BHrC, rows, *mixture)),
        parameters,
        rows_at_once=at_once,
    )
    has_rows_S = (whole.student > 0).to(whole.student.dtype)
    parts_S = (has_rows_S * (1 - whole.cosine)).sum(-1)
    compared = 1 if pair.heads.of_mean else heads
    return LossSum(total - total.detach() + parts_S.sum(), compared * _maps(targets), parts_S)


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
    )
    chunk_bytes = forward.attention_chunk_bytes
    if match.form == "cosine":
        return chunked_map_loss(pair, inputs, forward.num_samples, chunk_bytes=chunk_bytes)
    loss = chunked_attention_loss(pair, inputs, chunk_bytes=chunk_bytes)
    return loss if targets.samples_B is None else loss.by_sample(targets.samples_B, forward.num_samples)


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


def _maps(targets: AttentionTargets) -> int:
    """Samples that have a row; the blocks of a sample, one per image, have equally many."""
    samples = range(len(targets.num_rows_B)) if targets.block_samples is None else targets.block_samples
    return len({sample for sample, rows in zip(samples, targets.num_rows_B, strict=True) if rows})


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
