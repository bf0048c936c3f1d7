"""Divergences between next-token distributions, one short function each; p is the teacher's, q the student's.

Each takes log-probabilities of the same outcomes and returns one summand per outcome, in nats. Their sum is the
divergence.

All are f-divergences (Csiszar 1967): never negative, 0 only for p = q, and merging outcomes never increases them. So on
a truncated teacher's K + 1 outcomes (kept tokens and ONE bucket for all others) they are true divergences, and lower
bounds of the divergence over the whole vocabulary. An outcome without teacher mass must have a very low finite
log-probability, not -inf: 0 * inf is not 0.

The divergences `support_...` compare the kept tokens S alone: p_k / (sum of p over S) with q_k / (sum of q over S).
They are the only ones for a teacher whose tail is unknown, and do not depend on the mass that the student gives to S.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.tvd import tvd

Divergence = Callable[[Tensor, Tensor], Tensor]  # student and teacher log-probabilities -> terms of the same shape


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q || p) = sum of q (ln q - ln p): Align-KD eq. 6."""
    return student.exp() * (student - teacher)


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p || q) = sum of p (ln p - ln q)."""
    return teacher.exp() * (teacher - student)


def js(student: Tensor, teacher: Tensor, mixture: float) -> Tensor:
    """b KL(p || m) + (1 - b) KL(q || m) with m = b p + (1 - b) q: Jensen-Shannon of weight b (arXiv 2306.13649).

    Symmetric and at most ln 2 for b = 1/2. Divided by b it tends to forward KL as b tends to 0; divided by 1 - b it
    tends to reverse KL as b tends to 1.
    """
    mixed = _mixed(student, teacher, mixture)
    return mixture * forward_kl(mixed, teacher) + (1 - mixture) * reverse_kl(student, mixed)


def skewed_reverse_kl(student: Tensor, teacher: Tensor, mixture: float) -> Tensor:
    """KL(q || a q + (1 - a) p): bounded by -ln a, also where the teacher has no mass (arXiv 2402.03898)."""
    return reverse_kl(student, _mixed(student, teacher, 1 - mixture))


def skewed_forward_kl(student: Tensor, teacher: Tensor, mixture: float) -> Tensor:
    """KL(p || a p + (1 - a) q): bounded by -ln a, also where the student has no mass (arXiv 2402.03898)."""
    return forward_kl(_mixed(student, teacher, mixture), teacher)


def _mixed(student: Tensor, teacher: Tensor, teacher_share: float) -> Tensor:
    return torch.logaddexp(teacher + math.log(teacher_share), student + math.log1p(-teacher_share))


# `losses/logits/logit_loss.py` renormalises both sides before it calls these
SUPPORT = ("support_reverse_kl", "support_forward_kl", "support_js")
PLAIN: dict[str, Divergence] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "tvd": tvd,
    "support_reverse_kl": reverse_kl,
    "support_forward_kl": forward_kl,
}
# With the default mixture, which is that of the sources.
MIXED: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], float]] = {
    "js": (js, 0.5),
    "support_js": (js, 0.5),
    "skewed_reverse_kl": (skewed_reverse_kl, 0.1),
    "skewed_forward_kl": (skewed_forward_kl, 0.1),
}


def named_divergence(name: str, mixture: float | None = None) -> Divergence:
    """The divergence of this name.

    Args:
        mixture: b of `js` and `support_js`, a of the skewed divergences, above 0 and below 1; None is 0.5 and 0.1. The
            plain divergences have none.
    """
    if name in PLAIN:
        assert mixture is None, (name, mixture)
        return PLAIN[name]
    function, default = MIXED[name]
    share = default if mixture is None else mixture
    return lambda student, teacher: function(student, teacher, share)
