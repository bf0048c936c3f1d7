"""1 - cosine of what each vision token gets from the others, without the tokens that get most: CompoDistill's code.

The released code of CompoDistill (arXiv 2510.12184) compares other figures than eq. 4 of the paper (`maps.py`). Of a
map of vision tokens to vision tokens it drops, on both sides, each entry that is above mean + standard deviation of the
teacher's or of the student's map (attention sinks), and each entry that is 0 in the teacher's. It then compares the
means of the columns over the entries that are left.

Mean and standard deviation (divided by n - 1) are those of the whole square, zeros of a causal mask included. Which
entries are dropped has no gradient.

Shape letters: B blocks, S samples, H heads, r rows of a chunk, C columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# as in `torch.nn.functional.cosine_similarity`: columns of zeros have a cosine of 0
SMALLEST_NORM = 1e-8


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over the rows and columns of maps, float64: [B, H] or [S, H], and their number of entries [B] or [S]."""

    count: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def of_rows(cls, values_BHrC: Tensor, real_BrC: Tensor) -> Self:
        """The sums over some rows; entries that are not real must be 0."""
        return cls(
            count=real_BrC.sum((1, 2)).double(),
            total=values_BHrC.sum((2, 3), dtype=torch.float64),
            squares=values_BHrC.square().sum((2, 3), dtype=torch.float64),
        )

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            count=self.count + other.count, total=self.total + other.total, squares=self.squares + other.squares
        )

    def by_sample(self, samples_B: Tensor, num_samples: int) -> "Moments":
        """The sums of the blocks of each sample together."""
        return Moments(**{name: _by_sample(values, samples_B, num_samples) for name, values in vars(self).items()})

    @property
    def threshold(self) -> Tensor:
        """Mean plus standard deviation of each map, float64 [S, H]; larger entries are sinks."""
        count = self.count[:, None].clamp_min(1)
        mean = self.total / count
        variance = (self.squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)
        return mean + variance.sqrt()


@dataclass(frozen=True, kw_only=True)
class ColumnSums:
    """Sums over the kept rows of each column, [B, H, C]: of the teacher, of the student, and how many are kept."""

    teacher: Tensor
    student: Tensor
    kept: Tensor

    @classmethod
    def of_rows(cls, teacher_BHrC: Tensor, student_BHrC: Tensor, kept_BHrC: Tensor) -> Self:
        """The sums over some rows."""
        return cls(
            teacher=teacher_BHrC.masked_fill(~kept_BHrC, 0.0).sum(2),
            student=student_BHrC.masked_fill(~kept_BHrC, 0.0).sum(2),
            kept=kept_BHrC.sum(2).to(student_BHrC.dtype),
        )

    def __add__(self, other: "ColumnSums") -> "ColumnSums":
        return ColumnSums(
            teacher=self.teacher + other.teacher, student=self.student + other.student, kept=self.kept + other.kept
        )

    def compared(self, samples_B: Tensor, num_samples: int) -> "ColumnCosine":
        """The cosine of each sample's columns, those of all of its blocks together."""
        # in float64: 1 - cosine of similar columns would have few digits left
        number = self.kept.clamp_min(1).double()
        return ColumnCosine(self.teacher / number, self.student / number, number, samples_B, num_samples)


class ColumnCosine:
    """The cosine of the column means [B, H, C] of teacher and student, `values_SH`, float64.

    Args:
        teacher_BHC, student_BHC: the means, float64.
        number_BHC: entries of each mean, at least 1.
        samples_B: the sample of each block.
    """

    def __init__(
        self, teacher_BHC: Tensor, student_BHC: Tensor, number_BHC: Tensor, samples_B: Tensor, num_samples: int
    ) -> None:
        self._teacher_BHC, self._student_BHC, self._number_BHC = teacher_BHC, student_BHC, number_BHC
        self._samples_B = samples_B

        def summed(values_BHC: Tensor) -> Tensor:
            return _by_sample(values_BHC.sum(-1), samples_B, num_samples)

        self._squares_SH = tuple(
            summed(values.square()).clamp_min(SMALLEST_NORM**2) for values in (teacher_BHC, student_BHC)
        )
        self._factor_SH = (self._squares_SH[0] * self._squares_SH[1]).rsqrt()
        self.values_SH = summed(teacher_BHC * student_BHC) * self._factor_SH

    def linear(self) -> Callable[[ColumnSums], Tensor]:
        """A sum over rows, [B], whose gradient is that of 1 - cosine and whose sum over the whole map is 0."""
        factor, cosine, teacher, student = (
            values_SH[self._samples_B][:, :, None] for values_SH in (self._factor_SH, self.values_SH, *self._squares_SH)
        )
        of_student_BHC = (cosine / student * self._student_BHC - factor * self._teacher_BHC) / self._number_BHC
        of_teacher_BHC = (cosine / teacher * self._teacher_BHC - factor * self._student_BHC) / self._number_BHC

        def summed(rows: ColumnSums) -> Tensor:
            of_student, of_teacher = (values.to(rows.student.dtype) for values in (of_student_BHC, of_teacher_BHC))
            found: Tensor = (rows.student * of_student + rows.teacher * of_teacher).sum((1, 2))
            return found

        return summed


def _by_sample(values_B: Tensor, samples_B: Tensor, num_samples: int) -> Tensor:
    return values_B.new_zeros((num_samples, *values_B.shape[1:])).index_add_(0, samples_B, values_B)
