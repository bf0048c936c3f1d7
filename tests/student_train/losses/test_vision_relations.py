"""Relations of vision tokens, and norm and direction, against loops over plain numbers; and what they do not see."""

import math

import pytest
import torch
from torch import Tensor

from alignkd.student_train.losses.norm_direction import norm_direction_loss
from alignkd.student_train.losses.vision.relations import relation_loss, triangle_loss
from alignkd.vlm.relations import cosine_triangle


def states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(states(width, width, seed=7))[0]


def by_loops(student: Tensor, teacher: Tensor, unit: bool) -> float:
    """1 - cosine of the Gram matrices of one image."""
    sums = [0.0, 0.0, 0.0]
    for a in range(len(student)):
        for b in range(len(student)):
            entries = []
            for side in (student, teacher):
                product = sum(x * y for x, y in zip(side[a].tolist(), side[b].tolist(), strict=True))
                norms = [math.sqrt(sum(x * x for x in side[row].tolist())) for row in (a, b)]
                entries.append(product / (norms[0] * norms[1]) if unit else product)
            u, w = entries
            sums = [sums[0] + u * w, sums[1] + u * u, sums[2] + w * w]
    return 1 - sums[0] / math.sqrt(sums[1] * sums[2])


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize(("images", "tokens", "widths"), [(1, 2, (3, 3)), (3, 5, (4, 7)), (2, 9, (1, 2))])
def test_values_are_those_of_loops(images: int, tokens: int, widths: tuple[int, int], unit: bool) -> None:
    student, teacher = states(images, tokens, widths[0]), states(images, tokens, widths[1], seed=1)
    found = relation_loss(student, teacher, unit=unit)
    expected = [by_loops(ours, theirs, unit) for ours, theirs in zip(student, teacher, strict=True)]
    torch.testing.assert_close(found.parts, torch.tensor(expected, dtype=torch.float64))
    assert found.total.item() == pytest.approx(sum(expected)) and found.count == images


def test_the_triangle_is_the_full_matrix() -> None:
    student, teacher = states(3, 6, 4).requires_grad_(), states(3, 6, 5, seed=1)
    triangle = triangle_loss(student, cosine_triangle(teacher))
    units = [side / side.norm(dim=-1, keepdim=True) for side in (student, teacher)]
    grams = [(side @ side.transpose(1, 2)).flatten(1) for side in units]
    full = (1 - torch.cosine_similarity(*grams, dim=1)).sum()
    torch.testing.assert_close(triangle.total, full)
    ours, theirs = (torch.autograd.grad(loss, student)[0] for loss in (triangle.total, full))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("unit", [True, False])
def test_a_rotated_and_scaled_teacher_is_the_same(unit: bool) -> None:
    teacher = states(2, 6, 5)
    student = (3.7 * teacher @ rotation(5)).requires_grad_()
    found = relation_loss(student, teacher, unit=unit)
    assert abs(found.total.item()) < 1e-12
    (gradient,) = torch.autograd.grad(found.total, student)
    assert gradient.abs().max() < 1e-10


def test_unit_rows_do_not_see_the_norm_of_a_token() -> None:
    teacher, factors = states(2, 6, 5), torch.tensor([1.0, 2, 3, 0.1, 5, 6])[:, None].double()
    assert abs(relation_loss(teacher * factors, teacher).total.item()) < 1e-12
    assert relation_loss(teacher * factors, teacher, unit=False).total.item() > 0.01


def test_one_token_is_refused() -> None:
    for unit in (True, False):
        with pytest.raises(ValueError, match="an image has 1 vision token, but a relation needs 2"):
            relation_loss(states(2, 1, 4), states(2, 1, 4), unit=unit)
    with pytest.raises(ValueError, match="an image has 1 vision token"):
        triangle_loss(states(2, 1, 4), states(2, 0))


@pytest.mark.parametrize("unit", [True, False])
def test_states_of_zeros_are_finite(unit: bool) -> None:
    student = torch.zeros(1, 4, 3, requires_grad=True)
    loss = relation_loss(student, states(1, 4, 3).float(), unit=unit)
    loss.total.backward()
    assert loss.total.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_half_precision_states_are_summed_in_float32() -> None:
    student, teacher = states(1, 40, 64).half(), states(1, 40, 64, seed=1).half()
    found = relation_loss(student, teacher)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(relation_loss(student.double(), teacher.double()).total.item(), rel=1e-5)


def test_norm_and_direction_by_loops() -> None:
    student, centres, norms = states(6, 5).requires_grad_(), states(6, 5, seed=1), states(6, seed=2).abs() * 3
    has_centre = torch.tensor([True, True, False, True, False, True])
    found = norm_direction_loss(student, centres, norms, has_centre)
    expected = []
    for place in range(6):
        if not has_centre[place]:
            expected.append(0.0)
            continue
        s, c = student[place].tolist(), centres[place].tolist()
        product = sum(x * y for x, y in zip(s, c, strict=True)) / math.sqrt(sum(x * x for x in c))
        expected.append(1 - product / max(math.sqrt(sum(x * x for x in s)), norms[place].item()))
    torch.testing.assert_close(found.parts, torch.tensor(expected, dtype=torch.float64))
    assert found.count == 6
    (gradient,) = torch.autograd.grad(found.total, student)
    assert (gradient[~has_centre] == 0).all() and (gradient[has_centre] != 0).any(dim=1).all()


def test_a_state_along_its_class_that_is_long_enough_costs_nothing() -> None:
    centres = states(4, 5)
    directions = centres / centres.norm(dim=-1, keepdim=True)
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    assert norm_direction_loss(directions * norms[:, None], centres, norms).total.abs() < 1e-12
    assert norm_direction_loss(directions * 9, centres, norms).total.abs() < 1e-12
    short = norm_direction_loss(directions * norms[:, None] / 2, centres, norms)
    torch.testing.assert_close(short.parts, torch.full((4,), 0.5).double())
