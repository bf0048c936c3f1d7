"""Total variation distance, 1/2 sum |p - q|: between 0 and 1."""

from torch import Tensor


def tvd(student: Tensor, teacher: Tensor) -> Tensor:
    """One summand per outcome, from log-probabilities; the gradient is 0 where both sides agree.

    It is an f-divergence: on kept tokens and a bucket it is a lower bound.
    """
    return (teacher.exp() - student.exp()).abs() / 2
