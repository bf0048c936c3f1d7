"""The attention of some rows of one pair of layers, as the forms of the loss compare it.

Shape letters as in `term.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.losses.attention.forms import kl_with_rest, row_cosine
from alignkd.student_train.losses.attention.maps import MapSums
from alignkd.student_train.losses.attention.squared_error import length_mask, squared_errors
from alignkd.student_train.objective.attention.match import AttentionForm, HeadWeights
from alignkd.student_train.objective.attention.row_reference import RowReference


@dataclass(frozen=True, kw_only=True)
class RowsOfPair:
    """One pair of layers in one batch, and the measure of their difference.

    Attributes:
        targets: the teacher's attention.
        teacher: the layers whose mean is compared.
        heads: the mixture of its heads.
        form: the measure.
        reference: of the weights of rows; None: all rows count alike.
        vision_BR: bool, which rows are vision tokens; the form `filtered_cosine` compares them alone.
    """

    targets: AttentionTargets
    teacher: tuple[int, ...]
    heads: HeadWeights
    form: AttentionForm = "mse"
    reference: RowReference | None = None
    vision_BR: Tensor | None = None

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
        return MapSums.of_rows(*self.both_sides(chosen_BHrC, rows, *mixture))

    def both_sides(self, chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> tuple[Tensor, Tensor]:
        """What is compared of some rows, the teacher's and the student's [B, S, r, C], 0 where it is not."""
        weights = mixture or (self.heads.weight_ST,)
        left_out = ~self.real_BrC(rows)[:, None]
        teacher_BSrC, student_BSrC = self.teacher_BSrC(rows, *weights), self._compared(chosen_BHrC)
        return teacher_BSrC.masked_fill(left_out, 0.0), student_BSrC.masked_fill(left_out, 0.0)

    def real_BrC(self, rows: slice) -> Tensor:
        """bool, which entries of some rows are compared: no padding, and rows of vision tokens if only these are."""
        rows_Br = self.real_BR[:, rows]
        if self.form == "filtered_cosine":
            assert self.vision_BR is not None
            rows_Br = rows_Br & self.vision_BR[:, rows]
        return rows_Br[:, :, None] & self.real_BC[:, None]

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
