"""Cases of TAID: `t=T.FORM.VALUE` at each share T of the teacher, and trajectories of t, `schedule.adaptive=BOOL`."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.taid import BUCKETED, CROSS_ENTROPY, FULL, SHARE, mixture
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.outcomes import outcomes
from alignkd.student_train.losses.logits.rows import BucketedRows, TruncatedRows, bucketed_rows
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.logits.taid_schedule import TaidConfig, TaidState
from cases.objectives.case import Case, Found

AT = re.compile(r"(t=(?P<t>[^=]+)\.(?P<form>full|bucketed))\.(?P<value>\w+)")
SCHEDULE = re.compile(r"schedule\.adaptive=(?P<adaptive>True|False)")


def evaluate(case: Case) -> Found:
    """Every value and gradient of the case."""
    found = Found()
    for key, expected in case.expected.items():
        if (match := AT.fullmatch(key)) is not None:
            if (value := _value(case, match)) is not None:
                found.values[key] = value
        elif (match := SCHEDULE.fullmatch(key)) is not None:
            found.values[key] = {**expected, "t_after": _trajectory(expected, adaptive=match["adaptive"] == "True")}
    for name in {key.rpartition(".")[0] for key in case.gradients}:
        if (match := AT.fullmatch(f"{name}.kl_sum")) is not None:
            found.gradients |= case.gradients_of(name, _loss(case, match).total)
    return found


def _value(case: Case, match: re.Match[str]) -> Tensor | None:
    name, is_full = match["value"], match["form"] == "full"
    if name == "kl_sum":
        return _loss(case, match).total.detach()
    if name == "cross_entropy_sum":
        return _loss(case, match).figures[CROSS_ENTROPY].sum()
    if name == "mixture_mass_of_tail" and is_full:
        return _mass_of_tail(case, float(match["t"]))
    if name == "mixture_last_outcome" and not is_full:
        return _last_outcome(case, float(match["t"]))
    return None


def _loss(case: Case, match: re.Match[str]) -> LossSum:
    is_full = match["form"] == "full"
    return logit_loss(
        case.leaves["student_logits"],
        case.inputs["teacher_logits"] if is_full else _truncated(case),
        divergence=FULL if is_full else BUCKETED,
        step_values={SHARE: float(match["t"])},
    )


def _truncated(case: Case) -> TruncatedDistribution:
    return TruncatedDistribution(
        ids_NK=case.inputs["ids"],
        logprobs_NK=case.inputs["teacher_logprobs"],
        kept_NK=case.inputs["kept"],
        tail_logmass_N=case.inputs["teacher_tail"],
    )


def _mass_of_tail(case: Case, t: float) -> Tensor:
    """Mass that the full mixture gives to the tokens that are not kept, [N]."""
    student_NV, teacher_NV = (case.inputs[f"{side}_logits"].log_softmax(-1) for side in ("student", "teacher"))
    mixed_NV = mixture(student_NV, teacher_NV, t).exp()
    kept_NV = torch.zeros_like(mixed_NV).scatter_add_(1, case.inputs["ids"], case.inputs["kept"].to(mixed_NV.dtype))
    return mixed_NV.masked_fill(kept_NV > 0, 0.0).sum(-1)


def _last_outcome(case: Case, t: float) -> Tensor:
    """Mass of the last outcome in the bucketed mixture, [N]: the bucket, or the last token where all are kept."""
    teacher = _truncated(case)
    student = outcomes(case.inputs["student_logits"], ids_NK=teacher.ids_NK, kept_NK=teacher.kept_NK)
    rows: BucketedRows = bucketed_rows(TruncatedRows(student=student, teacher=teacher))
    mixed_NO = mixture(rows.student_NO, rows.teacher_NO, t, rows.there_NO)
    last_N1 = rows.there_NO.cumsum(-1).argmax(-1, keepdim=True)
    return mixed_NO.exp().gather(-1, last_N1)[:, 0]


def _trajectory(case: Mapping[str, Any], *, adaptive: bool) -> list[float]:
    """t after each of the losses."""
    # without the checks of settings: a case names rate and momentum also where they are not used
    config = TaidConfig.model_construct(
        start=case["t_start"], end=case["t_end"], rate=case["alpha"], momentum=case["beta"], adaptive=adaptive
    )
    state, found = TaidState.at_start(config), []
    for step, loss in enumerate(case["losses"]):
        state = state.after(config, loss, progress=step / case["num_steps"])
        found.append(state.t)
    return found
