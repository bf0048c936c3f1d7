"""The attention term on pairs of layers, in every form, against autograd on whole matrices in float64."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.map_losses import chunked_map_loss
from alignkd.student_train.objective.attention.match import MAP_FORMS, AttentionForm, FixedHeads, HeadWeights
from alignkd.student_train.objective.attention.row_reference import RowReference
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.attention.term import chunked_attention_loss
from alignkd.vlm.attention.attention_rows import RowInputs

LENGTH, HEADS, TEACHERS = 11, 4, 8
# rows and columns of three samples; the second is text only, the third begins with its vision tokens; rows of vision
# tokens and of others
ROWS = [[3, 4, 8, 9, 10], [], [0, 1, 2, 3, 5]]
COLS = [[1, 2, 3, 4], [], [0, 1, 2]]
LAYERS = (1, 2)
VISION_ROWS = [[row in cols for row in [*rows, *[-1] * (5 - len(rows))]] for rows, cols in zip(ROWS, COLS, strict=True)]


def causal(scores_HLL: Tensor) -> Tensor:
    return scores_HLL.masked_fill(torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), -torch.inf)


@pytest.fixture(scope="module")
def teacher_maps() -> Tensor:
    """Attention of the teacher's layers, float64 [samples, layers, heads, L, L]."""
    generator = torch.Generator().manual_seed(3)
    scores = 2 * torch.randn(3, len(LAYERS), TEACHERS, LENGTH, LENGTH, generator=generator, dtype=torch.float64)
    return causal(scores).softmax(-1)


@pytest.fixture(scope="module")
def targets(teacher_maps: Tensor) -> AttentionTargets:
    widths = max(map(len, ROWS)), max(map(len, COLS))
    coded = torch.zeros(3, widths[0], len(LAYERS) * TEACHERS, widths[1], dtype=torch.float64)
    rows_BR, cols_BC = torch.zeros(3, widths[0], dtype=torch.int64), torch.zeros(3, widths[1], dtype=torch.int64)
    for sample, (rows, cols) in enumerate(zip(ROWS, COLS, strict=True)):
        rows_BR[sample, : len(rows)], cols_BC[sample, : len(cols)] = torch.tensor(rows), torch.tensor(cols)
        if rows:
            chosen = teacher_maps[sample].flatten(0, 1)[:, rows][:, :, cols]
            coded[sample, : len(rows), :, : len(cols)] = chosen.transpose(0, 1)
    return AttentionTargets(
        rows_BR=rows_BR,
        cols_BC=cols_BC,
        num_rows_B=list(map(len, ROWS)),
        num_cols_B=list(map(len, COLS)),
        coded_BRHC=EncodedTensor.plain(coded),
        layers=LAYERS,
    )


@pytest.fixture
def projected() -> tuple[Tensor, Tensor]:
    """Queries and keys of all positions, float64 [B, H, L, d]."""
    generator = torch.Generator().manual_seed(4)
    query, key = (torch.randn(3, HEADS, LENGTH, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return query.requires_grad_(), key.requires_grad_()


def mixture(heads: str) -> HeadWeights:
    if heads == "adapter":
        weight = torch.randn(HEADS, TEACHERS, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 3
        return HeadWeights(weight_ST=weight.requires_grad_(), bias_S=torch.full((HEADS,), 0.1, dtype=torch.float64))
    fixed = FixedHeads(heads, num_students=HEADS, num_teachers=TEACHERS)  # type: ignore[arg-type]
    return HeadWeights(weight_ST=fixed.weight_ST.double(), of_mean=heads == "mean")


def whole_matrices(
    teacher_maps: Tensor, query: Tensor, key: Tensor, heads: HeadWeights, form: str, teacher: tuple[int, ...]
) -> Tensor:
    """The loss from all attention matrices, one row after the other."""
    student = causal(query @ key.transpose(2, 3) * 0.4).softmax(-1)
    mixed = torch.einsum("st,btrc->bsrc", heads.weight_ST, teacher_maps[:, [LAYERS.index(n) for n in teacher]].mean(1))
    if heads.bias_S is not None:
        mixed = mixed + heads.bias_S[:, None, None]
    if heads.of_mean:
        student = student.mean(1, keepdim=True)
    total = query.new_zeros(())
    for sample, (rows, cols) in enumerate(zip(ROWS, COLS, strict=True)):
        for head in range(student.shape[1]):
            t, s = (x[sample, head][rows][:, cols] for x in (mixed, student))
            if form == "cosine" and rows:
                total = total + 1 - torch.cosine_similarity(t.flatten(), s.flatten(), dim=0)
            elif form == "filtered_cosine" and rows:
                vision = [place for place, row in enumerate(rows) if row in cols]
                total = total + filtered(t[vision], s[vision])
            elif form == "mse":
                total = total + ((t - s) ** 2).sum()
            elif form == "row_cosine":
                total = total + sum(1 - torch.cosine_similarity(a, b, dim=0) for a, b in zip(t, s, strict=True))
            elif form == "kl":
                total = total + sum(divergence(a, b, row, cols) for a, b, row in zip(t, s, rows, strict=True))
    return total


def filtered(teacher: Tensor, student: Tensor) -> Tensor:
    """CompoDistill's code: entries above mean + standard deviation of either map are dropped, entry by entry."""
    kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for row, col in itertools.product(*map(range, teacher.shape)):
        t, s = teacher[row, col], student[row, col]
        if t != 0 and t <= teacher.mean() + teacher.std() and s <= student.mean() + student.std():
            kept.setdefault(col, []).append((t, s))
    means = [tuple(torch.stack(side).mean() for side in zip(*pairs, strict=True)) for pairs in kept.values()]
    return 1 - torch.cosine_similarity(*(torch.stack(side) for side in zip(*means, strict=True)), dim=0)


def divergence(teacher: Tensor, student: Tensor, row: int, cols: list[int]) -> Tensor:
    """KL over the columns that the row sees, and over all other keys where it sees any."""
    total = teacher.new_zeros(())
    for place, col in enumerate(cols):
        if col <= row:
            total = total + teacher[place] * (teacher[place] / student[place]).log()
    if set(range(row + 1)) - {*cols}:
        rest = 1 - teacher.sum()
        total = total + rest * (rest / (1 - student.sum())).log()
    return total


def fused(
    targets: AttentionTargets,
    query: Tensor,
    key: Tensor,
    heads: HeadWeights,
    form: AttentionForm,
    teacher: tuple[int, ...],
    chunk: int,
    **more: Any,
) -> LossSum:
    rows_BR = targets.rows_BR
    picked = query.gather(2, rows_BR[:, None, :, None].expand(-1, HEADS, -1, 8))
    inputs = RowInputs(query_BHRd=picked, key_BHLd=key, rows_BR=rows_BR, scaling=0.4)
    chunk_bytes = chunk * 4 * 3 * HEADS * LENGTH
    if form in MAP_FORMS:
        more["vision_BR"] = torch.tensor(VISION_ROWS)
        pair = RowsOfPair(targets=targets, teacher=teacher, heads=heads, form=form, **more)
        return chunked_map_loss(pair, inputs, 3, chunk_bytes=chunk_bytes)
    pair = RowsOfPair(targets=targets, teacher=teacher, heads=heads, form=form, **more)
    return chunked_attention_loss(pair, inputs, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("teacher", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize(
    ("form", "heads"),
    [
        *(("mse", heads) for heads in ("adapter", "grouped", "mean")),
        *(("cosine", heads) for heads in ("adapter", "grouped", "mean")),
        *(("row_cosine", heads) for heads in ("adapter", "grouped", "mean")),
        *(("filtered_cosine", heads) for heads in ("adapter", "grouped", "mean")),
        *(("kl", heads) for heads in ("grouped", "mean")),
    ],
)
def test_fused_equals_whole_matrices(
    teacher_maps: Tensor,
    targets: AttentionTargets,
    projected: tuple[Tensor, Tensor],
    form: AttentionForm,
    heads: str,
    teacher: tuple[int, ...],
    chunk: int,
) -> None:
    mixed = mixture(heads)
    leaves = [*projected, *([mixed.weight_ST] if heads == "adapter" else [])]
    expected = whole_matrices(teacher_maps, *projected, mixed, form, teacher)
    found = fused(targets, *projected, mixed, form, teacher, chunk)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.parts.sum(), expected, rtol=1e-9, atol=0)
    for own, other in zip(torch.autograd.grad(found.total, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-8, atol=1e-10)
        assert other.abs().max() > 1e-4  # the agreement means something
    rows, pairs = 10, 5 * 4 + 5 * 3
    assert found.count == (1 if heads == "mean" else HEADS) * {"mse": pairs}.get(form, 2 if form in MAP_FORMS else rows)


def test_the_rest_keeps_its_digits(targets: AttentionTargets, projected: tuple[Tensor, Tensor]) -> None:
    """A student that attends to columns alone up to e^-60: 1 minus their sum would be 0, and the loss infinite."""
    query, key = (value.detach().clone() for value in projected)
    query[..., 0], key[..., 0] = 20.0, 0.0
    key[0, :, 1:5, 0] = 7.5
    query, key = (value.float().requires_grad_() for value in (query, key))
    found = fused(targets, query, key, mixture("grouped"), "kl", (1,), 100)
    assert found.parts[0].item() > HEADS * 5 * 5  # about 60 nats times the teacher's rest of each row
    assert found.total.isfinite() and torch.autograd.grad(found.total, query)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["sharpness", "surprise"])
@pytest.mark.parametrize("heads", ["grouped", "adapter"])
@pytest.mark.parametrize("form", ["mse", "row_cosine"])
def test_rows_are_weighed(
    teacher_maps: Tensor,
    targets: AttentionTargets,
    projected: tuple[Tensor, Tensor],
    form: AttentionForm,
    heads: str,
    kind: Any,
) -> None:
    """The sum over rows of their weight times their loss alone."""
    mixed = mixture(heads)
    mean_map = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    reference = RowReference(kind, torch.tensor(0.7, dtype=torch.float64), mean_map if kind == "surprise" else None)
    found = fused(targets, *projected, mixed, form, (2,), 2, reference=reference)
    expected = 0.0
    for sample, row in ((0, 3), (2, 1), (2, 4)):
        alone = _one_row(targets, sample, row)
        loss = fused(alone, *projected, mixed, form, (2,), 100)
        weighted = fused(alone, *projected, mixed, form, (2,), 100, reference=reference)
        if heads == "adapter":  # one weight for all heads of the row
            weight = float(_weight(teacher_maps, sample, row, kind, mean_map[0]) / 0.7)
            assert weighted.total.item() == pytest.approx(weight * loss.total.item(), rel=1e-9)
    for sample, rows in enumerate(ROWS):
        for row in range(len(rows)):
            alone = _one_row(targets, sample, row)
            expected += fused(alone, *projected, mixed, form, (2,), 100, reference=reference).total.item()
    assert found.total.item() == pytest.approx(expected, rel=1e-9)


def _one_row(targets: AttentionTargets, sample: int, row: int) -> AttentionTargets:
    """The targets with one row of one sample."""
    pick = slice(row, row + 1)
    return AttentionTargets(
        rows_BR=targets.rows_BR[:, pick],
        cols_BC=targets.cols_BC,
        num_rows_B=[int(number == sample) for number in range(3)],
        num_cols_B=targets.num_cols_B,
        coded_BRHC=targets.stored_BRHC.rows(pick),
        layers=targets.layers,
    )


def _weight(teacher_maps: Tensor, sample: int, row: int, kind: str, mean_map: Tensor) -> Tensor:
    cols = COLS[sample]
    shares = teacher_maps[sample, 1].mean(0)[ROWS[sample][row]][cols]
    shares = shares / shares.sum()
    if kind == "sharpness":
        return 1 + shares.xlogy(shares).sum() / torch.tensor(float(len(cols))).double().log()
    images = torch.tensor(max(len(cols) / 4, 1.0)).double().log()
    return (shares.xlogy(shares) - shares * mean_map[: len(cols)].log()).sum() + images
