"""The logit loss with each divergence through the fused head, against direct autograd with [N, V] logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_divergences import plain_sinkhorn, plain_total, truncated_rows
from torch import Tensor
from torch.nn import functional

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import FullTargets, HiddenTargets, LogitTargets, RaggedEntries, TruncatedTargets
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.position_groups import position_groups
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head

N, V, D = 7, 11, 4
SAMPLES = [3, 0, 4]
NUM_KEPT = [1, 4, V, 2, 6, 3, 5]
# Settings of losses, and the settings of the definition.
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"logit_divergence": "tvd"}, {}),
    ({"logit_divergence": "cosine_probs"}, {}),
    ({"logit_divergence": "ofa", "ofa_gamma": 1.5}, {"gamma": 1.5}),
    ({"logit_divergence": "akl", "akl_head": 0.7}, {"head": 0.7}),
    ({"logit_divergence": "bild"}, {}),
    (
        {"logit_divergence": "bild", "bild": {"k": 4, "temperature": 1.5, "lead": "teacher"}},
        {"k": 4, "temperature": 1.5, "lead": "teacher"},
    ),
    ({"logit_divergence": "sinkhorn", "sinkhorn": {"temperature": 1.0, "positions": 2}}, {"positions": 2}),
    (
        {"logit_divergence": "sinkhorn", "sinkhorn": {"epsilon": 0.4, "iterations": 3, "positions": 9}},
        {"temperature": 2.0, "epsilon": 0.4, "iterations": 3, "positions": 9},
    ),
]
IDS = [f"{given['logit_divergence']}-{number}" for number, (given, _) in enumerate(CASES)]


class Sides:
    """A student and a teacher in float64, with `num_tokens` compared columns."""

    def __init__(self, num_tokens: int | None = None) -> None:
        generator = torch.Generator().manual_seed(6)
        self.hidden_ND, self.weight_VD, self.states_ND, self.teacher_VD = (
            torch.randn(shape, dtype=torch.float64, generator=generator) for shape in [(N, D), (V, D)] * 2
        )
        self.num_tokens = num_tokens
        self.labels_N = torch.randint(num_tokens or V, (N,), generator=generator)
        self.teacher_NV = (self.states_ND @ self.teacher_VD.T)[:, :num_tokens]
        self.kept = truncated_rows(self.teacher_NV, [min(keep, self.teacher_NV.shape[1]) for keep in NUM_KEPT])

    def targets(self, kind: str) -> LogitTargets:
        if kind == "full":
            return FullTargets(logits=EncodedTensor.plain(self.states_ND @ self.teacher_VD.T))
        if kind == "hidden":
            return HiddenTargets(states=EncodedTensor.plain(self.states_ND))
        logprobs_NV = self.teacher_NV.log_softmax(-1)
        tails = [
            row_V.index_fill(0, torch.tensor(own), -torch.inf)
            for row_V, own in zip(logprobs_NV, self.kept, strict=True)
        ]
        entries = RaggedEntries(
            ids_E=torch.tensor([token for tokens in self.kept for token in tokens], dtype=torch.uint16),
            values_E=torch.cat([row_V[own] for row_V, own in zip(logprobs_NV, self.kept, strict=True)]).float(),
            offsets=torch.tensor([0, *map(len, self.kept)]).cumsum(0),
            widest=max(map(len, self.kept)),
        )
        return TruncatedTargets(entries=entries, tail_logmass_N=torch.stack(tails).logsumexp(-1).float())

    def fused(self, losses: LossConfig, kind: str, chunk: int) -> tuple[list[Tensor], tuple[Tensor, ...], Tensor]:
        """Totals of both terms, gradients of their weighted sum, and the logit loss at each position."""
        own = [x.clone().requires_grad_() for x in (self.hidden_ND, self.weight_VD)]
        inputs = losses.head_inputs(
            self.labels_N,
            self.targets(kind),
            Head(weight_VD=self.teacher_VD),
            num_tokens=self.num_tokens,
            positions_of_sample=SAMPLES,
        )
        sums = fused_head_losses(
            own[0],
            Head(weight_VD=own[1]),
            head_terms(inputs, {"supervised": 1.0, "logit": 0.25}),
            chunk_bytes=8 * V * chunk,
            groups=inputs.groups,
        )
        totals = [loss.total for loss in sums]
        return totals, torch.autograd.grad(totals[0] + 0.25 * totals[1], own), sums[1].parts

    def direct(self, name: str, settings: dict[str, Any], kept: Any) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        own = [x.clone().requires_grad_() for x in (self.hidden_ND, self.weight_VD)]
        logits_NV = own[0] @ own[1].T
        compared_NV = logits_NV[:, : self.num_tokens]
        totals = [functional.cross_entropy(logits_NV, self.labels_N, reduction="sum")]
        if name == "sinkhorn":
            totals.append(self._sinkhorn(compared_NV, kept, **settings))
        else:
            totals.append(plain_total(name, settings, compared_NV, self.teacher_NV, self.labels_N, kept))
        return totals, torch.autograd.grad(totals[0] + 0.25 * totals[1], own)

    def _sinkhorn(self, student_NV: Tensor, kept: Any, *, positions: int, **settings: Any) -> Tensor:
        values, start = [], 0
        for size in position_groups(SAMPLES, positions):
            group = slice(start, start := start + size)
            own = None if kept is None else kept[group]
            values.append(plain_sinkhorn(student_NV[group], self.teacher_NV[group], kept=own, **settings))
        return torch.stack(values).sum()


def fits(losses: LossConfig, kind: str) -> bool:
    return losses.problems_with(kind, "store s") == []


@pytest.mark.parametrize("num_tokens", [None, V - 2])
@pytest.mark.parametrize("kind", ["full", "hidden", "nucleus"])
@pytest.mark.parametrize(("given", "settings"), CASES, ids=IDS)
def test_fused_equals_direct_autograd(
    given: dict[str, Any], settings: dict[str, Any], kind: str, num_tokens: int | None
) -> None:
    """Whatever the chunk, with cross-entropy in the same pass or apart from it."""
    losses, sides = LossConfig(**given), Sides(num_tokens)
    if not fits(losses, kind):
        return
    name = given["logit_divergence"]
    expected, gradients = sides.direct(name, settings, sides.kept if kind == "nucleus" else None)
    parts = []
    for chunk in (1, 3, 4, 100):
        totals, found, parts_N = sides.fused(losses, kind, chunk)
        tolerance = {"rtol": 2e-6, "atol": 2e-6} if kind == "nucleus" else {"rtol": 1e-8, "atol": 1e-10}
        torch.testing.assert_close(totals, expected, **tolerance)
        torch.testing.assert_close(found, gradients, **tolerance)
        parts.append(parts_N)
    for other in parts[1:]:
        torch.testing.assert_close(other, parts[0], rtol=1e-12, atol=1e-13)


def test_what_fits_is_compared() -> None:
    """`test_fused_equals_direct_autograd` leaves out these alone."""
    left_out = [
        (name, kind)
        for (given, _), name in zip(CASES, IDS, strict=True)
        for kind in ("full", "hidden", "nucleus")
        if not fits(LossConfig(**given), kind)
    ]
    assert left_out == [("bild-4", "nucleus"), ("sinkhorn-7", "nucleus")]


def test_groups_depend_on_the_sample_alone() -> None:
    """A sample's Sinkhorn values are the same alone and beside others, in any order."""
    losses, sides = LossConfig(logit_divergence="sinkhorn", sinkhorn={"positions": 3}), Sides()

    def values(order: list[slice]) -> list[Tensor]:
        places = torch.cat([torch.arange(N)[own] for own in order])
        inputs = losses.head_inputs(
            sides.labels_N[places],
            FullTargets(logits=EncodedTensor.plain(sides.teacher_NV[places])),
            None,
            positions_of_sample=[len(torch.arange(N)[own]) for own in order],
        )
        terms = head_terms(inputs, {"logit": 1.0})
        head = Head(weight_VD=sides.weight_VD)
        (found,) = fused_head_losses(sides.hidden_ND[places], head, terms, groups=inputs.groups)
        return list(found.parts.split([len(torch.arange(N)[own]) for own in order]))

    first, second = slice(0, 3), slice(3, 7)
    together, turned = values([first, second]), values([second, first])
    torch.testing.assert_close(together, turned[::-1])
    torch.testing.assert_close(together, [*values([first]), *values([second])])


def test_numbers_of_a_step_reach_the_divergence() -> None:
    sides = Sides()
    divergence = RowDivergence(
        full=lambda rows: rows.step_values["share"] * rows.student_NV.sum(-1),
        truncated=lambda rows: rows.step_values["share"] * rows.student.tail_logmass_N.exp(),
    )
    for kind in ("full", "nucleus"):
        found = []
        for share in (0.5, 1.0):
            inputs = LossConfig().head_inputs(sides.labels_N, sides.targets(kind), None, step_values={"share": share})
            terms = head_terms(replace(inputs, divergence=divergence), {"supervised": 1.0, "logit": 1.0})
            head = Head(weight_VD=sides.weight_VD)
            found.append(fused_head_losses(sides.hidden_ND, head, terms, chunk_bytes=8 * V * 3)[1].total)
        assert found[0] != 0.0
        torch.testing.assert_close(2 * found[0], found[1])
