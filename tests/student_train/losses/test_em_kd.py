"""EM-KD: matching, reverse KL of vision logits, smooth L1 of cosines; against golden values and plain loops."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import vision_matching
from cases.objectives.case import Case, worst_relative_error
from cases.objectives.em_kd import evaluate
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor

from alignkd.student_train.losses.vision.matching import cheapest_pairs, logit_distances, state_distances
from alignkd.student_train.losses.vision.vlad import vlad_loss
from alignkd.student_train.losses.vision.vsd import vsd_loss
from alignkd.vlm.families.family import Head
from alignkd.vlm.relations import cosines

GOLDEN = Path(__file__).parents[2] / "golden" / "objectives" / "em_kd"


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("case", [0, 1, 2])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_golden_values_and_gradients(case: int, dtype: torch.dtype, limit: float) -> None:
    read = Case.read(GOLDEN / str(case), dtype)
    assert worst_relative_error(read, evaluate(read)) < limit


@pytest.mark.parametrize(("student", "teacher"), [(3, 3), (4, 2), (1, 3)])
def test_a_case_of_another_shape(student: int, teacher: int, tmp_path: Path) -> None:
    """Values of every key by plain loops over permutations, tokens and entries."""
    logits = 3 * random(0, student, 7), 3 * random(1, teacher, 7)
    vision, text = (random(2, student, 4), random(3, teacher, 6)), (random(4, 5, 4), random(5, 5, 6))
    pairs = [
        [*zip(rows, columns, strict=True)]
        for rows in itertools.combinations(range(student), min(student, teacher))
        for columns in itertools.permutations(range(teacher), min(student, teacher))
    ]
    costs = [sum((logits[0][s] - logits[1][t]).abs().sum().item() for s, t in found) for found in pairs]
    chosen = {"matched": pairs[costs.index(min(costs))], "same_place": [(n, n) for n in range(min(student, teacher))]}
    values = {"matching_cost": min(costs)}
    for name, found in chosen.items():
        values[f"vsd.{name}_sum"] = sum(kl(logits[0][s].tolist(), logits[1][t].tolist()) for s, t in found)
        errors = [
            abs(cosine(vision[0][s], text[0][q]) - cosine(vision[1][t], text[1][q])) for s, t in found for q in range(5)
        ]
        values[f"vlad.{name}_sum"] = sum(error**2 / 2 if error <= 1 else error - 0.5 for error in errors)
    names = ("vision_logits", "vision_states", "text_states")
    given = {
        f"in.{side}_{name}": value[number].contiguous()
        for name, value in zip(names, (logits, vision, text), strict=True)
        for number, side in enumerate(("student", "teacher"))
    }
    save_file(given, tmp_path / "0.safetensors")
    (tmp_path / "0.json").write_text(json.dumps(values))
    case = Case.read(tmp_path / "0")
    assert worst_relative_error(case, evaluate(case)) < 1e-10


def kl(q: list[float], p: list[float]) -> float:
    """KL(softmax(q) || softmax(p))."""
    logq, logp = ([z - math.log(sum(map(math.exp, row))) for z in row] for row in (q, p))
    return sum(math.exp(own) * (own - other) for own, other in zip(logq, logp, strict=True))


def cosine(a: Tensor, b: Tensor) -> float:
    pairs = [*zip(a.tolist(), b.tolist(), strict=True)]
    return sum(x * y for x, y in pairs) / math.sqrt(sum(x * x for x, _ in pairs) * sum(y * y for _, y in pairs))


@pytest.mark.parametrize(("student", "teacher"), [(4, 4), (3, 5), (5, 3), (1, 6)])
def test_the_matching_is_the_cheapest_of_all(student: int, teacher: int) -> None:
    distances = logit_distances(random(student, student, 9), random(teacher + 10, teacher, 9))
    rows, columns = cheapest_pairs(distances.numpy())
    fewer = min(student, teacher)
    every = (
        sum(distances[row, column].item() for row, column in zip(rows, columns, strict=True))
        for rows in itertools.combinations(range(student), fewer)
        for columns in itertools.permutations(range(teacher), fewer)
    )
    assert distances[rows, columns].sum().item() == pytest.approx(min(every), rel=1e-12)
    assert list(rows) == sorted({*rows.tolist()}) and len({*columns.tolist()}) == len(columns) == fewer


def test_distances_are_sums_of_absolute_differences() -> None:
    student, teacher = random(0, 3, 7), random(1, 2, 7)
    found = logit_distances(student, teacher)
    for row, column in itertools.product(range(3), range(2)):
        expected = sum(abs(student[row, v].item() - teacher[column, v].item()) for v in range(7))
        assert found[row, column].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chunk_bytes", [1, 200, 1 << 20])
@pytest.mark.parametrize("num_tokens", [None, 17])
def test_distances_from_states_are_those_of_the_logits(chunk_bytes: int, num_tokens: int | None) -> None:
    states = random(0, 4, 6), random(1, 5, 8)
    heads = (
        Head(weight_VD=random(2, 21, 6), bias_V=random(3, 21), scale=0.5, softcap=3.0),
        Head(weight_VD=random(4, 21, 8)),
    )
    found = state_distances(states[0], heads[0], states[1], heads[1], num_tokens=num_tokens, chunk_bytes=chunk_bytes)
    expected = logit_distances(heads[0](states[0])[:, :num_tokens], heads[1](states[1])[:, :num_tokens])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_identical_sides_are_matched_in_place_and_cost_nothing() -> None:
    logits, vision, text = random(0, 6, 30), random(1, 6, 5), random(2, 4, 5)
    rows, columns = cheapest_pairs(logit_distances(logits, logits).numpy())
    assert rows.tolist() == columns.tolist() == list(range(6))
    assert vsd_loss(logits, logits).total.item() == pytest.approx(0, abs=1e-12)
    affinity = cosines(vision, text)[None]
    # cosines depend on neither length nor direction of the space: another hidden size serves
    rotated = torch.linalg.qr(random(3, 7, 5))[0].T
    other = cosines(3 * vision @ rotated, 0.1 * text @ rotated)[None]
    assert vlad_loss(other, affinity, torch.ones_like(affinity).bool()).total.item() == pytest.approx(0, abs=1e-12)


def test_a_permuted_teacher_gives_the_permuted_matching_and_the_same_losses() -> None:
    student, teacher, text = random(0, 4, 30), random(1, 6, 30), random(2, 5, 30)
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    found = []
    for own in (teacher, teacher[order]):
        rows, columns = cheapest_pairs(logit_distances(student, own).numpy())
        affinity = cosines(own[columns], text)[None]
        mask = torch.ones_like(affinity).bool()
        losses = vsd_loss(student[rows], own[columns]), vlad_loss(cosines(student[rows], text)[None], affinity, mask)
        found.append((columns, [loss.total.item() for loss in losses]))
    assert order[found[1][0]].tolist() == found[0][0].tolist()
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-12)


def test_a_diverged_model_is_matched_somehow() -> None:
    distances = logit_distances(torch.full((2, 3), torch.nan), torch.full((4, 3), torch.inf))
    rows, columns = cheapest_pairs(distances.numpy())
    assert rows.tolist() == [0, 1] and len({*columns.tolist()}) == 2


def test_reverse_kl_against_a_loop_with_extreme_logits() -> None:
    student, teacher = 30 * random(0, 5, 8), 30 * random(1, 5, 8)
    student.requires_grad_()
    loss = vsd_loss(student, teacher)
    expected = []
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        logq, logp = (
            [z - max(row) - math.log(sum(math.exp(y - max(row)) for y in row)) for z in row] for row in (own, other)
        )
        expected.append(sum(math.exp(q) * (q - p) for q, p in zip(logq, logp, strict=True)))
    assert loss.parts.tolist() == pytest.approx(expected, rel=1e-10) and loss.count == 5
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert gradient.isfinite().all()


def test_smooth_l1_against_a_loop_and_padding_adds_nothing() -> None:
    sizes = [(3, 2), (1, 4), (0, 0)]
    student, teacher = (2 * random(seed, 3, 3, 4) for seed in (0, 1))
    mask = torch.zeros(3, 3, 4, dtype=torch.bool)
    expected = []
    for sample, (rows, columns) in enumerate(sizes):
        mask[sample, :rows, :columns] = True
        errors = [
            abs(student[sample, r, c] - teacher[sample, r, c]).item() for r in range(rows) for c in range(columns)
        ]
        expected.append(sum(error**2 / 2 if error <= 1 else error - 0.5 for error in errors))
    # whatever padding holds, it adds nothing, and has no gradient
    student, teacher = (values.masked_fill(~mask, torch.nan) for values in (student, teacher))
    student.requires_grad_()
    loss = vlad_loss(student, teacher, mask)
    assert loss.parts.tolist() == pytest.approx(expected, rel=1e-12)
    assert loss.total.item() == pytest.approx(sum(expected), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert gradient.masked_select(~mask).eq(0).all() and gradient.masked_select(mask).ne(0).any()


def test_the_benchmark_of_the_matching_runs() -> None:
    result = CliRunner().invoke(vision_matching.main, ["--tiny"])
    assert result.exit_code == 0 and len(result.output.splitlines()) == 3, result.output


def test_cosines_of_states_without_a_length_are_0() -> None:
    states = torch.zeros(2, 3, requires_grad=True)
    found = cosines(states, torch.ones(4, 3))
    assert found.eq(0).all()
    (gradient,) = torch.autograd.grad(found.sum(), states)
    assert gradient.isfinite().all()
    half = cosines(random(0, 2, 5).half(), random(1, 3, 5).half())
    assert half.dtype == torch.float32 and half.abs().max() <= 1
