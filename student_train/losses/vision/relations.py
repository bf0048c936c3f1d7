"""Relations of vision tokens, LLaVA-KD's RDist (arXiv 2410.16236): the Gram matrix of an image's states.

With R = Y Y^T of the states Y of the vision tokens of an image, the loss is 1 - cos(R_s, R_t) of the two matrices as
vectors. Rows of unit norm make R the cosines of all pairs of tokens: the loss then depends neither on the norms of
states nor on a rotation, and states of different widths can be compared without an adapter.

R has ones on its diagonal then, so its upper triangle suffices. With u of the student and w of the teacher,

    cos = (P + 2 sum u w) / sqrt((P + 2 sum u^2) (P + 2 sum w^2)).

1 - cos of two vectors is half the squared distance of their directions, which is computed in its place: it keeps its
digits where the two are nearly equal, and is never negative.

Shapes: I images of P vision tokens each, Ds and Dt hidden sizes, R = P (P - 1) / 2 pairs.
"""

from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.vlm.relations import cosine_triangle, num_pairs


def relation_loss(student_IPD: Tensor, teacher_IPD: Tensor, *, unit: bool = True) -> LossSum:
    """Sum over images of 1 - cosine of the Gram matrices.

    Args:
        student_IPD: the student's states, width Ds.
        teacher_IPD: the teacher's states, width Dt.
        unit: whether rows have unit norm.

    Raises:
        ValueError: an image of one token.
    """
    if unit:
        return triangle_loss(student_IPD, cosine_triangle(to_accum_dtype(teacher_IPD)))
    _check_pairs(student_IPD.shape[1])
    student_IPP, teacher_IPP = (_gram(to_accum_dtype(states)) for states in (student_IPD, teacher_IPD))
    distances_IX = (_direction(student_IPP) - _direction(teacher_IPP)).flatten(1)
    return LossSum.of(distances_IX.square().sum(-1) / 2)


def triangle_loss(student_IPD: Tensor, teacher_IR: Tensor) -> LossSum:
    """`relation_loss` with unit rows, against the teacher's stored cosines.

    Args:
        student_IPD: the student's states, width Ds.
        teacher_IR: entries above the diagonal, row by row.

    Raises:
        ValueError: an image of one token.
    """
    tokens = student_IPD.shape[1]
    _check_pairs(tokens)
    assert teacher_IR.shape == (len(student_IPD), num_pairs(tokens)), (teacher_IR.shape, student_IPD.shape)
    student_IR, teacher_IR = cosine_triangle(to_accum_dtype(student_IPD)), to_accum_dtype(teacher_IR)
    ours_I, theirs_I = (1 / (tokens + 2 * side_IR.square().sum(-1)).sqrt() for side_IR in (student_IR, teacher_IR))
    of_diagonal_I = tokens * (ours_I - theirs_I).square()
    of_pairs_I = 2 * (student_IR * ours_I[:, None] - teacher_IR * theirs_I[:, None]).square().sum(-1)
    return LossSum.of((of_diagonal_I + of_pairs_I) / 2)


# so that states of zeros do not divide by 0
_SMALLEST = 1e-30


def _direction(gram_IPP: Tensor) -> Tensor:
    """Each matrix divided by its norm."""
    return gram_IPP / gram_IPP.square().sum((1, 2), keepdim=True).clamp(min=_SMALLEST).sqrt()


def _gram(states_IPD: Tensor) -> Tensor:
    return states_IPD @ states_IPD.transpose(1, 2)


def _check_pairs(tokens: int) -> None:
    if tokens < 2:
        raise ValueError(f"an image has {tokens} vision token, but a relation needs 2; set losses.relation to 0")
