"""Relations of vision tokens, LLaVA-KD's RDist (arXiv 2410.16236): the Gram matrix of an image's states.

With R = Y Y^T of the states Y of the vision tokens of an image, the loss is 1 - cos(R_s, R_t) of the two matrices as
vectors. Rows of unit norm make R the cosines of all pairs of tokens: the loss then depends neither on the norms of
states nor on a rotation, and states of different widths can be compared without an adapter.

R has ones on its diagonal then, so its upper triangle suffices. With u of the student and w of the teacher,

    cos = (P + 2 sum u w) / sqrt((P + 2 sum u^2) (P + 2 sum w^2)).

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
    products_I = (student_IPP * teacher_IPP).sum((1, 2))
    norms_I = student_IPP.square().sum((1, 2)) * teacher_IPP.square().sum((1, 2))
    return LossSum.of(1 - products_I / norms_I.clamp(min=_SMALLEST).sqrt())


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
    products_I = tokens + 2 * (student_IR * teacher_IR).sum(-1)
    norms_I = (tokens + 2 * student_IR.square().sum(-1)) * (tokens + 2 * teacher_IR.square().sum(-1))
    return LossSum.of(1 - products_I / norms_I.sqrt())


# so that states of zeros do not divide by 0
_SMALLEST = 1e-30


def _gram(states_IPD: Tensor) -> Tensor:
    return states_IPD @ states_IPD.transpose(1, 2)


def _check_pairs(tokens: int) -> None:
    if tokens < 2:
        raise ValueError(f"an image has {tokens} vision token, but a relation needs 2; set losses.relation to 0")
