"""Golden cases of the token divergences `tvd`, `cosine_probs`, `ofa`, `akl` and `bild`.

Keys are `NAME.SETTINGS.FORM_sum`: `tvd.full_sum`, `ofa.gamma=1.5.bucketed_sum`, `bild.k=5.T=3.0.teacher_led_sum`.
`akl.head_sizes` are the sizes of the heads. Gradients have the key of the value without `_sum`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from alignkd.student_train.losses.logits.divergences.akl import akl, head_mask
from alignkd.student_train.losses.logits.divergences.bild import led_values
from alignkd.student_train.losses.logits.divergences.cosine import cosine_probs
from alignkd.student_train.losses.logits.divergences.ofa import ofa
from alignkd.student_train.losses.logits.divergences.tvd import tvd
from alignkd.student_train.losses.logits.logit_loss import logit_loss, per_outcome
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from cases.objectives.case import Case, Found

MADE: Mapping[str, Callable[[Mapping[str, float]], RowDivergence]] = {
    "tvd": lambda settings: per_outcome(tvd),
    "cosine_probs": lambda settings: cosine_probs(),
    "ofa": lambda settings: ofa(settings.get("gamma", 1.0)),
    "akl": lambda settings: akl(settings.get("head", 0.5)),
}


def evaluate(case: Case) -> Found:
    """Every value of the case and its gradient along the student's logits."""
    found = Found()
    for key in case.expected:
        if key.endswith("head_sizes"):
            masses_NV = case.leaves["teacher_logits"].detach().softmax(dim=-1)
            found.values[key] = head_mask(masses_NV, settings_of(key).get("head", 0.5)).sum(-1)
        elif key.endswith("_sum"):
            found.add(case, key, _value(case, key), gradient=key.removesuffix("_sum"))
    return found


def settings_of(key: str) -> dict[str, float]:
    """The numbers in a key: `ofa.gamma=1.5.full_sum` has `{"gamma": 1.5}`."""
    found: dict[str, float] = {}
    name = ""
    for part in key.split("."):
        if "=" in part:
            name, _, number = part.partition("=")
            found[name] = float(number)
        elif part.isdigit() and name:  # the digits after the point
            found[name] += float(f"0.{part}")
        else:
            name = ""
    return found


def truncated(inputs: Mapping[str, Tensor]) -> TruncatedDistribution:
    """The truncated teacher of a case."""
    return TruncatedDistribution(
        ids_NK=inputs["ids"],
        logprobs_NK=inputs["teacher_logprobs"],
        kept_NK=inputs["kept"],
        tail_logmass_N=inputs["teacher_tail"],
    )


def _value(case: Case, key: str) -> Tensor:
    name, settings = key.split(".")[0], settings_of(key)
    form = key.rpartition(".")[2].removesuffix("_sum")
    inputs = case.leaves
    if name == "bild":
        student_NV, teacher_NV = (inputs[f"{side}_logits"].log_softmax(-1) for side in ("student", "teacher"))
        leader_NV = {"teacher_led": teacher_NV, "student_led": student_NV}[form]
        return led_values(leader_NV, student_NV, teacher_NV, int(settings["k"]), settings["T"]).sum()
    teacher: Any = inputs["teacher_logits"] if form == "full" else truncated(inputs)
    return logit_loss(
        inputs["student_logits"], teacher, divergence=MADE[name](settings), labels_N=inputs["labels"]
    ).total
