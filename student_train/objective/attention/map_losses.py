"""The forms of the attention loss that compare whole maps, some rows at a time.

A map's loss needs sums over all of its rows, so the rows are computed more than once: first without gradient for the
sums, last for a sum over rows whose gradient is that of the loss, because the sums enter it as constants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.losses.attention.filtered_maps import ColumnSums, Moments
from alignkd.student_train.losses.attention.fused import fused_attention_loss
from alignkd.student_train.losses.attention.maps import MapSums
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.vlm.attention.attention_rows import RowInputs

_Sums = TypeVar("_Sums", MapSums, ColumnSums, "_TwoMoments")


def chunked_map_loss(pair: RowsOfPair, inputs: RowInputs, num_samples: int, *, chunk_bytes: int) -> LossSum:
    """1 - cosine of the maps of each sample and head, `cosine` or `filtered_cosine`; its parts are the samples.

    Args:
        inputs, chunk_bytes: as in `chunked_attention_loss`.
    """
    passes = _Passes(pair, inputs, chunk_bytes)
    form = _filtered if pair.form == "filtered_cosine" else _whole
    cosine_SH, has_rows_SH, linear = form(pair, passes, num_samples)
    total = passes.last(linear)
    parts_S = (has_rows_SH.to(cosine_SH.dtype) * (1 - cosine_SH)).sum(-1).to(total.dtype)
    compared = 1 if pair.heads.of_mean else inputs.key_BHLd.shape[1]
    return LossSum(total - total.detach() + parts_S.sum(), compared * _maps(pair.targets), parts_S)


# the loss [B] of some rows, as `fused_attention_loss` needs it
_Linear = Callable[..., Tensor]


class _Passes:
    """Passes over all rows of a pair, some rows at a time."""

    def __init__(self, pair: RowsOfPair, inputs: RowInputs, chunk_bytes: int) -> None:
        targets = pair.targets
        num, _, _, cols = targets.stored_BRHC.shape
        heads, length = inputs.key_BHLd.shape[1:3]
        self._at_once = max(1, chunk_bytes // (4 * num * max(heads * length, targets.num_heads * cols)))
        self._inputs, self._columns_BC, self._parameters = inputs, targets.cols_BC, pair.heads.parameters
        samples_B = targets.samples_B
        self.samples_B = torch.arange(num, device=targets.rows_BR.device) if samples_B is None else samples_B

    def sums(self, of_rows: Callable[..., _Sums]) -> _Sums:
        """The sum of a function of some rows over all of them, without gradient."""
        found: list[_Sums] = []

        def measure(chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> Tensor:
            new = of_rows(chosen_BHrC, rows, *mixture)
            found[:] = [found[0] + new] if found else [new]
            return chosen_BHrC.new_zeros(len(chosen_BHrC))

        with torch.no_grad():
            self.last(measure)
        return found[0]

    def last(self, loss: _Linear) -> Tensor:
        """The sum of a loss over all rows, with gradient."""
        return fused_attention_loss(self._inputs, self._columns_BC, loss, self._parameters, rows_at_once=self._at_once)[
            0
        ]


def _whole(pair: RowsOfPair, passes: _Passes, num_samples: int) -> tuple[Tensor, Tensor, _Linear]:
    """Cosines [S, H] of whole maps, which of them have rows, and the linear loss of some rows."""
    whole = passes.sums(pair.sums_of_rows).by_sample(passes.samples_B, num_samples)

    def linear(chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> Tensor:
        return whole.linearised(passes.samples_B, pair.sums_of_rows(chosen_BHrC, rows, *mixture))

    return whole.cosine, whole.student > 0, linear


def _filtered(pair: RowsOfPair, passes: _Passes, num_samples: int) -> tuple[Tensor, Tensor, _Linear]:
    """The same of `filtered_cosine`: a first pass for the thresholds, a second one for the column means."""
    samples_B = passes.samples_B

    def moments(chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> _TwoMoments:
        real_BrC = pair.real_BrC(rows)
        return _TwoMoments(*(Moments.of_rows(side, real_BrC) for side in pair.both_sides(chosen_BHrC, rows, *mixture)))

    both = passes.sums(moments)
    whole = [side.by_sample(samples_B, num_samples) for side in both]
    teacher_BH11, student_BH11 = (side.threshold[samples_B][:, :, None, None] for side in whole)

    def columns(chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> ColumnSums:
        teacher_BHrC, student_BHrC = pair.both_sides(chosen_BHrC, rows, *mixture)
        kept_BHrC = (teacher_BHrC != 0) & (teacher_BHrC <= teacher_BH11) & (student_BHrC <= student_BH11)
        return ColumnSums.of_rows(teacher_BHrC, student_BHrC, kept_BHrC)

    cosine = passes.sums(columns).compared(samples_B, num_samples)
    of_columns = cosine.linear()

    def linear(chosen_BHrC: Tensor, rows: slice, *mixture: Tensor) -> Tensor:
        return of_columns(columns(chosen_BHrC, rows, *mixture))

    return cosine.values_SH, (whole[0].count > 0)[:, None].expand_as(cosine.values_SH), linear


class _TwoMoments(NamedTuple):
    """Of the teacher's and of the student's map."""

    teacher: Moments
    student: Moments

    def __add__(self, other: Any) -> "_TwoMoments":
        return _TwoMoments(self.teacher + other.teacher, self.student + other.student)


def _maps(targets: AttentionTargets) -> int:
    """Samples that have a row; the blocks of a sample, one per image, have equally many."""
    samples = range(len(targets.num_rows_B)) if targets.block_samples is None else targets.block_samples
    return len({sample for sample, rows in zip(samples, targets.num_rows_B, strict=True) if rows})
