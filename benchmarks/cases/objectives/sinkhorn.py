"""Golden cases of the Sinkhorn distance; all positions of a case are one group.

Keys are `FORM.T=2.0.eps=0.1.iters=20`, with FORM `full` or `truncated`, and the same with `.largest_row_sum_error`: the
columns of a plan sum to 1, its rows only nearly. `one_position_is_twice_tvd` is the loss of the first position alone,
`student_equals_teacher_is_not_zero` that of the teacher against itself, both at T = 1, e = 0.1 and 20 iterations. The
gradient of the truncated form has the key `truncated`. `in.truncated_cost` is not read: the product computes it.
"""

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.sinkhorn import full_cost, log_plan, sinkhorn
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from cases.objectives.case import Case, Found
from cases.objectives.token_divergences import settings_of, truncated

ROW_SUM_ERROR = ".largest_row_sum_error"


def evaluate(case: Case) -> Found:
    """Every value of the case; gradients are along the student's logits."""
    found, inputs = Found(), case.leaves
    student_NV, teacher_NV = inputs["student_logits"], inputs["teacher_logits"]
    for key in case.expected:
        if key.endswith(ROW_SUM_ERROR):
            found.values[key] = _row_sum_error(student_NV, teacher_NV, settings_of(key))
        elif key.startswith("one_position"):
            found.add(case, key, _loss(student_NV[:1], teacher_NV[:1], key), gradient=key)
        elif key.startswith("student_equals_teacher"):
            found.add(case, key, _loss(teacher_NV, teacher_NV.detach(), key), gradient=key)
        elif key.startswith("full."):
            found.add(case, key, _loss(student_NV, teacher_NV, key), gradient=key)
        elif key.startswith("truncated."):
            gradient = key if f"{key}.student_logits" in case.gradients else "truncated"
            found.add(case, key, _loss(student_NV, truncated(inputs), key), gradient=gradient)
    return found


def _loss(student_NV: Tensor, teacher: Tensor | TruncatedDistribution, key: str) -> Tensor:
    settings = settings_of(key)
    divergence = sinkhorn(
        settings.get("T", 1.0), settings.get("eps", 0.1), int(settings.get("iters", 20)), positions=len(student_NV)
    )
    return logit_loss(student_NV, teacher, divergence=divergence, groups=(len(student_NV),)).total


def _row_sum_error(student_NV: Tensor, teacher_NV: Tensor, settings: dict[str, float]) -> Tensor:
    cost_NN = full_cost(*((logits_NV / settings["T"]).softmax(-1) for logits_NV in (student_NV, teacher_NV)))
    there_1N = torch.ones((1, len(cost_NN)), dtype=torch.bool)
    plan_NN = log_plan(cost_NN[None], there_1N, settings["eps"], int(settings["iters"]))[0].exp()
    return (plan_NN.sum(dim=1) - 1).abs().max().detach()
