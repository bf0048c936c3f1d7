"""The terms of eq. 7 on the student's logits, and whether one pass over a chunk of them serves all.

Labels and a truncated teacher's entries are a few tokens per position: cross-entropy and logit loss then share the
pass of `losses/outcomes.py`. A teacher's full logits are compared token by token, each loss for itself.
"""

from torch import Tensor

from alignkd.student_train.config import LossConfig
from alignkd.student_train.data.targets import (
    FullTargets,
    HiddenTargets,
    LogitTargets,
    SampledTargets,
    TruncatedTargets,
)
from alignkd.student_train.losses.fused_head import JointTerms, WeightedTerm
from alignkd.student_train.losses.logit import bucketed_loss
from alignkd.student_train.losses.outcomes import outcomes
from alignkd.student_train.losses.sampled_logit import loss_of_draws
from alignkd.student_train.losses.sparse_distribution import SparseDistribution
from alignkd.student_train.losses.supervised import cross_entropy, supervised_loss
from alignkd.student_train.objective.logit_term import logit_term

HEAD_TERMS = ("supervised", "logit")


def head_terms(
    labels_N: Tensor, targets: LogitTargets | None, lm_head_VD: Tensor | None, losses: LossConfig
) -> JointTerms:
    """Those of `HEAD_TERMS` that have a weight, in this order.

    Args:
        labels_N: int64, the next token of each of N supervised positions.
        targets: the teacher's distributions there; not looked at where `logit` has no weight.
        lm_head_VD: the teacher's, needed by `HiddenTargets` alone.
    """
    if losses.logit > 0 and isinstance(targets, FullTargets | HiddenTargets):
        terms = [WeightedTerm(term=logit_term(targets, lm_head_VD, losses), weight=losses.logit)]
        if losses.supervised > 0:
            term = lambda logits_nV, chunk: supervised_loss(logits_nV, labels_N[chunk]).total  # noqa: E731
            terms.insert(0, WeightedTerm(term=term, weight=losses.supervised))
        return JointTerms.of(terms)
    assert losses.logit == 0 or isinstance(targets, TruncatedTargets | SampledTargets), targets
    sparse = targets if losses.logit > 0 and isinstance(targets, TruncatedTargets | SampledTargets) else None

    def terms_of_chunk(logits_nV: Tensor, chunk: slice) -> list[Tensor]:
        teacher = None if sparse is None else sparse.distribution(chunk)
        student = outcomes(
            logits_nV,
            labels_N=labels_N[chunk] if losses.supervised > 0 else None,
            ids_NK=None if teacher is None else teacher.ids_NK,
            kept_NK=teacher.kept_NK if isinstance(teacher, SparseDistribution) else None,
            overwrite=True,
        )
        found = [cross_entropy(student)] if losses.supervised > 0 else []
        if isinstance(teacher, SparseDistribution):
            found.append(bucketed_loss(student, teacher, losses.divergence))
        elif teacher is not None:
            found.append(loss_of_draws(student, teacher))
        return [loss.total for loss in found]

    weights = [weight for weight in (losses.supervised, losses.logit) if weight > 0]
    return JointTerms(terms=terms_of_chunk, weights=weights)
