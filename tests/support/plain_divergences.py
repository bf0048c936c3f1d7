"""The divergences of the logit loss by their definitions, from probabilities, position by position and pair by pair.

Shape letters: V vocabulary, g positions of a group.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def truncated_rows(teacher_NV: Tensor, num_kept: Sequence[int]) -> list[list[int]]:
    """The most probable tokens of each position."""
    order_NV = teacher_NV.argsort(dim=-1, descending=True)
    return [order_V[:keep].tolist() for order_V, keep in zip(order_NV, num_kept, strict=True)]


def plain_total(
    name: str, settings: dict[str, Any], student_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor, kept: Any = None
) -> Tensor:
    """The sum over positions at temperature 1, from logits; `kept` are the tokens of each position, None: all."""
    values = []
    for n, (student_V, teacher_V) in enumerate(zip(student_NV, teacher_NV, strict=True)):
        tokens = [*range(len(student_V))] if kept is None else kept[n]
        values.append(PLAIN[name](teacher_V.softmax(-1), student_V.softmax(-1), int(labels_N[n]), tokens, **settings))
    return torch.stack(values).sum()


def _bucketed(x_V: Tensor, tokens: list[int]) -> list[Tensor]:
    rest = [token for token in range(len(x_V)) if token not in tokens]
    return [*(x_V[token] for token in tokens), *([x_V[rest].sum()] if rest else [])]


def _sum(values: Any) -> Tensor:
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values] or [torch.zeros(())]).sum()


def plain_tvd(p: Tensor, q: Tensor, label: int, tokens: list[int]) -> Tensor:
    return _sum(abs(a - b) / 2 for a, b in zip(_bucketed(p, tokens), _bucketed(q, tokens), strict=True))


def plain_cosine(p: Tensor, q: Tensor, label: int, tokens: list[int]) -> Tensor:
    product = _sum(p[token] * q[token] for token in tokens)
    return 1 - product / (_sum(p[token] ** 2 for token in tokens) * _sum(x**2 for x in q)).sqrt()


def plain_ofa(p: Tensor, q: Tensor, label: int, tokens: list[int], gamma: float = 1.0) -> Tensor:
    others = [token for token in tokens if token != label]
    rest = [token for token in range(len(p)) if token not in tokens]
    found = -_sum(p[token] * q[token].log() for token in others)
    if rest:
        found = found - p[rest].sum() * q[rest].sum().log()
    weight = (1 + p[label]) ** gamma - 1 if label in tokens else 0.0
    return found - weight * q[label].log()


def plain_akl(p: Tensor, q: Tensor, label: int, tokens: list[int], head: float = 0.5) -> Tensor:
    ranked, mass, in_head = sorted(tokens, key=lambda token: -float(p[token])), 0.0, []
    for token in ranked:
        if mass >= head:
            break
        in_head.append(token)
        mass += float(p[token])
    outcomes = [*zip(_bucketed(p, ranked), _bucketed(q, ranked), strict=True)]
    forward = _sum(a * (a / b).log() for a, b in outcomes)
    reverse = _sum(b * (b / a).log() for a, b in outcomes)
    gaps = [abs(float(a.detach()) - float(b.detach())) for a, b in outcomes]
    share = sum(gaps[: len(in_head)]) / sum(gaps)
    return share * forward + (1 - share) * reverse


def plain_bild(
    p: Tensor, q: Tensor, label: int, tokens: list[int], k: int = 8, temperature: float = 3.0, lead: str = "both"
) -> Tensor:
    leaders = {"teacher": [p], "both": [p, q]}[lead]
    total = 0.0 * q.sum()
    for leader in leaders:
        chosen = sorted(tokens, key=lambda token: -float(leader[token].detach()))[:k]
        pairs = [*itertools.combinations(chosen, 2)]
        if not pairs:
            continue
        a, b = (torch.stack([(x[i].log() - x[j].log()) / temperature for i, j in pairs]).softmax(-1) for x in (p, q))
        total = total + (a * (a / b).log()).sum()
    return total


PLAIN: dict[str, Callable[..., Tensor]] = {
    "tvd": plain_tvd,
    "cosine_probs": plain_cosine,
    "ofa": plain_ofa,
    "akl": plain_akl,
    "bild": plain_bild,
}


def plain_sinkhorn(
    student_gV: Tensor,
    teacher_gV: Tensor,
    *,
    kept: list[list[int]] | None = None,
    temperature: float = 1.0,
    epsilon: float = 0.1,
    iterations: int = 20,
) -> Tensor:
    """The loss of one group, from logits, by the kernel exp(-W / epsilon) itself."""
    q_gV, p_gV = (logits_gV.div(temperature).softmax(-1) for logits_gV in (student_gV, teacher_gV))
    cost = [[_cost(q_V, p_V, None if kept is None else kept[j]) for j, p_V in enumerate(p_gV)] for q_V in q_gV]
    cost_gg = torch.stack([torch.stack(row) for row in cost])
    plan_gg = (-cost_gg / epsilon).exp()
    for _ in range(iterations):
        plan_gg = plan_gg / plan_gg.sum(dim=1, keepdim=True)
        plan_gg = plan_gg / plan_gg.sum(dim=0, keepdim=True)
    return (plan_gg * cost_gg).sum()


def _cost(q_V: Tensor, p_V: Tensor, tokens: list[int] | None) -> Tensor:
    every = [*range(len(q_V))] if tokens is None else tokens
    return _sum(abs(a - b) for a, b in zip(_bucketed(q_V, every), _bucketed(p_V, every), strict=True))
