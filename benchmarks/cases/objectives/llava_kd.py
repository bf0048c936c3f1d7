"""Cases of LLaVA-KD's relations and visual logits, and of the ND loss.

Keys of values: `rdist.normalised_rows=BOOL_sum`, `rdist.from_triangle_sum`, `mdist_vis.DIVERGENCE_sum` and `_mean`,
`nd_sum`; those of gradients have no `_sum`, and `mdist_vis` no divergence.
"""

from torch import Tensor

from alignkd.student_train.losses.logits.divergences.f_divergences import named_divergence
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.norm_direction import norm_direction_loss
from alignkd.student_train.losses.vision.relations import relation_loss, triangle_loss
from cases.objectives.case import Case, Found


def evaluate(case: Case) -> Found:
    """Every value that the case expects, by the functions of the losses."""
    found = Found()
    for key in case.expected:
        name, _, reduction = key.rpartition("_")
        if reduction not in ("sum", "mean"):
            continue
        loss = _loss(case, name)
        gradient = name.split(".")[0] if name.startswith("mdist_vis") else name
        if reduction == "mean":
            found.add(case, key, loss.mean)
        else:
            found.add(case, key, loss.total, gradient=gradient)
    return found


def _loss(case: Case, name: str) -> LossSum:
    values = case.leaves
    form, _, setting = name.partition(".")
    if form == "nd":
        labels = values["nd_labels"]
        centres, norms = values["nd_centres"][labels], values["nd_teacher"].norm(dim=-1)
        return norm_direction_loss(values["nd_student"], centres, norms)
    if form == "mdist_vis":
        logits: tuple[Tensor, Tensor] = (values["vision_student_logits"], values["vision_teacher_logits"])
        return logit_loss(*logits, divergence=named_divergence(setting))  # type: ignore[arg-type]
    if setting == "from_triangle":
        return triangle_loss(values["student_states"], values["teacher_triangle"])
    unit = {"True": True, "False": False}[setting.removeprefix("normalised_rows=")]
    return relation_loss(values["student_states"], values["teacher_states"], unit=unit)
