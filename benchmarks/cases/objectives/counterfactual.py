"""MCD's losses `effect` and `keep`, and visual advantage.

Inputs: logits [N, V] of the passes of teacher and student: `full`, `drop` (the evidence replaced), `keep` (only the
evidence kept); `labels` [N]. `support` are the tokens that a store keeps of each position.
"""

import torch
from torch import Tensor

from alignkd.student_train.losses.counterfactual import effect_loss, keep_loss
from alignkd.student_train.losses.logits.divergences.f_divergences import named_divergence
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.teacher_dump.settings.counterfactual import CounterfactualConfig
from alignkd.teacher_dump.targets.counterfactual import ADVANTAGE, compared_passes, on_tokens
from cases.objectives.case import Case, Found

SUPPORT = "support"


def evaluate(case: Case) -> Found:
    """Both losses on the support, visual advantage, and the mean Jensen-Shannon divergence of the teacher's passes."""
    found = Found(parameters=frozenset({SUPPORT}))
    given, leaves = case.inputs, case.leaves
    full_NV, drop_NV = given["teacher_full"], given["teacher_drop"]
    teacher = [on_support(logits, case.expected[SUPPORT]) for logits in (full_NV, drop_NV)]
    effect = effect_loss(leaves["student_full"], leaves["student_drop"], *teacher)
    found.add(case, "effect_sum", effect.total, gradient="effect")
    found.add(case, "keep_sum", keep_loss(leaves["student_keep"], teacher[0]).total, gradient="keep")
    table = compared_passes(lambda logits: logits, (full_NV, drop_NV), given["labels"], CounterfactualConfig())
    found.values["visual_advantage"] = table[ADVANTAGE]
    found.add(case, "teacher_drop_js_mean", logit_loss(drop_NV, full_NV, divergence=named_divergence("js")).mean)
    return found


def on_support(logits_NV: Tensor, support: list[list[int]]) -> TruncatedDistribution:
    """The distribution on the tokens of each position and one bucket, as the store has it."""
    widest = max(map(len, support))
    ids_NK = torch.tensor([[*row, *[0] * (widest - len(row))] for row in support])
    kept_NK = torch.arange(widest) < torch.tensor([len(row) for row in support])[:, None]
    logprobs_NK, tail_N = on_tokens(logits_NV.log_softmax(-1), ids_NK, kept_NK)
    return TruncatedDistribution(
        ids_NK=ids_NK, logprobs_NK=logprobs_NK.masked_fill(~kept_NK, 0.0), kept_NK=kept_NK, tail_logmass_N=tail_N
    )
