"""Losses on logits at odd positions, through the whole objective: value and gradient against loops over positions.

The formulas are those of docs/objectives.md. Odd are: one kept token, all tokens kept, almost all mass in the tail, a
label that is not kept, a teacher with all mass on one token, padded vocabularies, a sample of one position.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.loader import load_batch
from alignkd.student_train.data.targets import FullTargets, RaggedEntries, TruncatedTargets
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.run.student import build_student

OFF: dict[str, Any] = {"attention": 0, "vision_all": 0, "vision_top": 0, "supervised": 0.5}
GAMMA, HEAD, SHARE = 2.5, 0.6, 0.3
T_BILD, K_BILD, EPSILON, ITERATIONS, GROUP = 1.5, 4, 0.2, 3, 3


def kl(p: Tensor, q: Tensor) -> Tensor:
    there = p > 0
    return (p[there] * (p[there] / q[there]).log()).sum()


def mixed(p: Tensor, q: Tensor, share: float) -> Tensor:
    return share * p + (1 - share) * q


def akl(p: Tensor, q: Tensor, kept: int) -> Tensor:
    """The outcome after the first `kept`, if there is one, is the bucket, which is never in the head."""
    gaps = (p - q).abs().detach()
    head = [i for i in range(kept) if float(p[:kept][p[:kept] > p[i]].sum()) < HEAD]
    share = gaps[head].sum() / gaps.sum()
    return share * kl(p, q) + (1 - share) * kl(q, p)


def bild(p: Tensor, q: Tensor, ids: list[int]) -> Tensor:
    pairs = [(a, b) for n, a in enumerate(ids) for b in ids[n + 1 :]]
    if len(pairs) < 2:
        return q.sum() * 0
    sides = [torch.stack([(x[a].log() - x[b].log()) / T_BILD for a, b in pairs]).softmax(0) for x in (p, q)]
    return kl(*sides)


def taid(p: Tensor, q: Tensor) -> Tensor:
    weights = q.detach() ** (1 - SHARE) * p**SHARE
    return kl(weights / weights.sum(), q)


def ofa(p: Tensor, q: Tensor, p_y: Tensor, q_y: Tensor) -> Tensor:
    cross = -(p * q.log()).sum()
    return cross + p_y * q_y.log() - ((1 + p_y) ** GAMMA - 1) * q_y.log()


def sinkhorn(costs: Tensor) -> Tensor:
    plan = (-costs / EPSILON).exp()
    for _ in range(ITERATIONS):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return (plan * costs).sum()


def on_outcomes(name: str, p: Tensor, q: Tensor, kept: int, p_y: Tensor, q_y: Tensor) -> Tensor:
    """A divergence of the outcomes of one position."""
    m = mixed(p, q, 0.5)
    found = {
        "reverse_kl": lambda: kl(q, p),
        "forward_kl": lambda: kl(p, q),
        "js": lambda: 0.5 * kl(p, m) + 0.5 * kl(q, m),
        "skewed_reverse_kl": lambda: kl(q, mixed(q, p, 0.1)),
        "skewed_forward_kl": lambda: kl(p, mixed(p, q, 0.1)),
        "tvd": lambda: (p - q).abs().sum() / 2,
        "ofa": lambda: ofa(p, q, p_y, q_y),
        "akl": lambda: akl(p, q, kept),
        "taid": lambda: taid(p, q),
    }
    return found[name]()


def truncated(name: str, q: Tensor, ids: list[int], logps: Tensor, tail: float, label: int) -> Tensor:
    p = logps.exp()
    if name.startswith("support_"):
        return on_outcomes(name.removeprefix("support_"), p / p.sum(), q[ids] / q[ids].sum(), len(ids), p[0], q[0])
    if name == "bild":
        best = sorted(range(len(ids)), key=lambda i: -float(logps[i]))[:K_BILD]
        return bild(p, q[ids], best)
    if name == "cosine_probs":
        return 1 - (p * q[ids]).sum() / p.norm() / q.norm()
    others = [token for token in range(len(q)) if token not in ids]
    outcomes = [p, torch.tensor([np.exp(tail)], dtype=torch.float64)] if others else [p]
    students = [q[ids], q[others].sum()[None]] if others else [q[ids]]
    p_y = p[ids.index(label)] if label in ids else p[0] * 0
    return on_outcomes(name, torch.cat(outcomes), torch.cat(students), len(ids), p_y, q[label])


SETTINGS: dict[str, dict[str, Any]] = {
    "ofa": {"ofa_gamma": GAMMA},
    "akl": {"akl_head": HEAD},
    "bild": {"bild": {"lead": "teacher", "k": K_BILD, "temperature": T_BILD}},
    "taid": {"taid": {"start": SHARE, "form": "bucketed"}},
    "sinkhorn": {"sinkhorn": {"temperature": 1.0, "epsilon": EPSILON, "iterations": ITERATIONS, "positions": GROUP}},
}
BUCKETED = ("reverse_kl", "forward_kl", "js", "skewed_reverse_kl", "skewed_forward_kl", "tvd", "ofa", "akl", "taid")
FULL = ("forward_kl", "tvd", "ofa", "akl", "cosine_probs", "bild", "taid")
TRUNCATED = (*BUCKETED, "cosine_probs", "bild", "support_reverse_kl", "support_forward_kl", "support_js", "sinkhorn")


class Odd:
    """A student in float64, a batch of samples with and without images, and logits of a teacher made by hand."""

    def __init__(self, job: TrainJob) -> None:
        plan = plan_run(job, start_ranks())
        self.student = build_student(job, plan.student, plan.reader).eval().double()
        self.batch = load_batch(plan.samples, np.arange(3), targets=(), stem=None)
        self.num_tokens = self.student.num_tokens or self.student.model.config.vocab_size
        self.rng = np.random.default_rng(0)

    def entries(self) -> list[tuple[list[int], Tensor, float]]:
        """Ids, log-probabilities and log-mass of the tail of each position; float32 values."""
        found: list[tuple[list[int], Tensor, float]] = []
        for n, label in enumerate(self.batch.labels_N.tolist()):
            size = (1, self.num_tokens, 3, 7, 2)[n % 5]
            ids = self.rng.permutation(self.num_tokens)[:size].tolist()
            if n % 2 and label not in ids:
                ids[0] = label
            whole = torch.from_numpy(self.rng.normal(size=size + 1)).log_softmax(0)
            logps, tail = whole[:-1], float(whole[-1])
            if size == self.num_tokens:
                logps, tail = whole[:-1].log_softmax(0), -np.inf
            elif n % 5 == 3:  # almost all mass in the tail
                logps, tail = torch.full((size,), -50.0, dtype=torch.float64) - torch.arange(size), -1e-20
            elif n % 5 == 4:  # all mass in the kept tokens, though others exist
                logps, tail = whole[:-1].log_softmax(0), -np.inf
            found.append((ids, logps.float().double(), float(np.float32(tail))))
        return found

    def check(self, losses: dict[str, Any], targets: Any, expected: Callable[[Tensor], Tensor]) -> None:
        """The objective against `expected`, which takes the student's logits [N, V] of the compared columns."""
        student = self.student
        student.losses = LossConfig(**OFF | losses)
        student.step_values = student.losses.first_step_values
        weights = [value for value in student.parameters() if value.requires_grad]
        found = student(replace(self.batch, logits=targets))
        hidden_BLD = student.model.hidden_states(
            self.batch.sequences,
            student.model.encode_images(self.batch.sequences.images, self.batch.sequences.image_samples_I.tolist()),
        )
        logits_NV = student.model.head(hidden_BLD.flatten(0, 1)[self.batch.supervised_N])[:, : self.num_tokens]
        value = expected(logits_NV)
        assert found["logit"].count == len(self.batch.labels_N)
        torch.testing.assert_close(found["logit"].total, value, rtol=1e-9, atol=1e-12)
        cross = torch.nn.functional.cross_entropy(
            student.model.head(hidden_BLD.flatten(0, 1)[self.batch.supervised_N]), self.batch.labels_N, reduction="sum"
        )
        whole = found["logit"].total + 0.5 * found["supervised"].total
        ours, theirs = (torch.autograd.grad(loss, weights, allow_unused=True) for loss in (whole, value + 0.5 * cross))
        for one, other in zip(ours, theirs, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert (one - other).norm() <= 1e-8 * other.norm() + 1e-11


@pytest.fixture(params=["qwen3_vl", "smolvlm"])
def odd(request: Any, family_job: Callable[..., TrainJob], family_store: Callable[..., Path]) -> Odd:
    kept = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
    losses = {"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0}
    return Odd(family_job(request.param, store=family_store(request.param, **kept), losses=losses))


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
def test_odd_positions(family: str, family_job: Callable[..., TrainJob], family_store: Callable[..., Path]) -> None:
    kept = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
    losses = {"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0}
    odd = Odd(family_job(family, store=family_store(family, **kept), losses=losses))
    entries = odd.entries()
    for name in TRUNCATED:
        # reverse KL is infinite where the teacher has no mass
        finite = name in ("reverse_kl", "skewed_reverse_kl", "akl")
        _check_truncated(
            odd, name, [(ids, logps, max(tail, -60.0) if finite else tail) for ids, logps, tail in entries]
        )
    for name in FULL:
        _check_full(odd, name)


def _check_truncated(odd: Odd, name: str, entries: list[tuple[list[int], Tensor, float]]) -> None:
    sizes = [len(ids) for ids, _, _ in entries]
    targets = TruncatedTargets(
        entries=RaggedEntries(
            ids_E=torch.cat([torch.tensor(ids) for ids, _, _ in entries]).to(torch.int32),
            values_E=torch.cat([logps for _, logps, _ in entries]).float(),
            offsets=torch.tensor([0, *np.cumsum(sizes)]),
            widest=max(sizes),
        ),
        tail_logmass_N=torch.tensor([tail for _, _, tail in entries], dtype=torch.float32),
    )
    labels = odd.batch.labels_N.tolist()

    def expected(logits_NV: Tensor) -> Tensor:
        q_NV = logits_NV.softmax(-1)
        if name == "sinkhorn":
            return _sinkhorn_of_groups(odd, q_NV, entries)
        of_positions = zip(q_NV, entries, labels, strict=True)
        return torch.stack([truncated(name, q, *entry, label) for q, entry, label in of_positions]).sum()

    odd.check({"logit_divergence": name, **SETTINGS.get(name, {})}, targets, expected)


def _sinkhorn_of_groups(odd: Odd, q_NV: Tensor, entries: list[tuple[list[int], Tensor, float]]) -> Tensor:
    """As few groups of consecutive positions of a sample as possible, the smaller ones first."""
    total, start = q_NV.sum() * 0, 0
    for number in odd.batch.positions_of_sample:
        groups = -(-number // GROUP)
        for size in sorted(len(part) for part in np.array_split(np.arange(number), groups)):
            rows = []
            for i in range(start, start + size):
                for ids, logps, tail in entries[start : start + size]:
                    cost = (q_NV[i][ids] - logps.exp()).abs().sum()
                    if len(ids) < odd.num_tokens:
                        cost = cost + (1 - q_NV[i][ids].sum() - np.exp(tail)).abs()
                    rows.append(cost)
            total = total + sinkhorn(torch.stack(rows).view(size, size))
            start += size
    return total


def _check_full(odd: Odd, name: str) -> None:
    """All mass on one token, and equal logits at all tokens."""
    logits_NV = torch.from_numpy(odd.rng.normal(size=(len(odd.batch.labels_N), odd.student.model.config.vocab_size)))
    logits_NV[0, 5] += 400
    logits_NV[1] = 0.0
    labels = odd.batch.labels_N.tolist()
    settings = {"taid": {"start": SHARE}} if name == "taid" else SETTINGS.get(name, {})

    def expected(student_NV: Tensor) -> Tensor:
        total = student_NV.sum() * 0
        for z_q, z_p, label in zip(student_NV, logits_NV[:, : odd.num_tokens], labels, strict=True):
            p, q = z_p.softmax(0), z_q.softmax(0)
            if name == "cosine_probs":
                total = total + 1 - (p * q).sum() / p.norm() / q.norm()
            elif name == "bild":
                total = total + bild(p, q, z_p.topk(K_BILD).indices.tolist())
            else:
                total = total + on_outcomes(name, p, q, len(p), p[label], q[label])
        return total

    full = FullTargets(logits=EncodedTensor(codec="float32", parts={"": logits_NV}))
    odd.check({"logit_divergence": name, **settings}, full, expected)
