"""1 - cosine of whole attention maps, from sums over their rows: the form of CompoDistill (arXiv 2510.12184, eq. 4).

A cosine needs sums over all rows, which are computed in chunks. So the rows are computed twice: first the three sums,
then a loss whose gradient is that of the cosine, because the sums enter it as constants.

Shape letters: B blocks, S samples, H heads, r rows of a chunk, C columns.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# a map of zeros has a cosine of 0
SMALLEST_NORM = 1e-12


@dataclass(frozen=True, kw_only=True)
class MapSums:
    """Sums over the rows and columns of maps, [S, H] or [B, H].

    Attributes:
        product: teacher times student.
        teacher, student: their squares.
    """

    product: Tensor
    teacher: Tensor
    student: Tensor

    @classmethod
    def of_rows(cls, teacher_BHrC: Tensor, student_BHrC: Tensor) -> Self:
        """The sums over some rows; padding must be 0."""
        return cls(
            product=(teacher_BHrC * student_BHrC).sum((2, 3)),
            teacher=teacher_BHrC.square().sum((2, 3)),
            student=student_BHrC.square().sum((2, 3)),
        )

    def __add__(self, other: "MapSums") -> "MapSums":
        return MapSums(
            product=self.product + other.product,
            teacher=self.teacher + other.teacher,
            student=self.student + other.student,
        )

    def by_sample(self, samples_B: Tensor, num_samples: int) -> "MapSums":
        """The sums of the blocks of each sample together."""
        found = {
            name: values.new_zeros((num_samples, values.shape[1])).index_add_(0, samples_B, values)
            for name, values in vars(self).items()
        }
        return MapSums(**found)

    @property
    def cosine(self) -> Tensor:
        """The cosine of each map."""
        return self.product * self._factor

    @property
    def _factor(self) -> Tensor:
        return 1 / (self.teacher.sqrt() * self.student.sqrt()).clamp_min(SMALLEST_NORM)

    def linearised(self, samples_B: Tensor, rows: "MapSums") -> Tensor:
        """A sum over rows, [B], whose gradient is that of 1 - cosine and whose sum over the whole map is 0.

        Args:
            samples_B: the sample of each block.
            rows: sums over some rows, with gradient.
        """
        factor, cosine = self._factor[samples_B], self.cosine[samples_B]
        squares = rows.student * _inverse(self.student[samples_B]) + rows.teacher * _inverse(self.teacher[samples_B])
        found_BH: Tensor = cosine / 2 * squares - factor * rows.product
        return found_BH.sum(-1)


def _inverse(squares: Tensor) -> Tensor:
    return torch.where(squares > 0, 1 / squares.clamp_min(SMALLEST_NORM**2), 0.0)
