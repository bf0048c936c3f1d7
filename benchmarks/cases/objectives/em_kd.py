"""EM-KD: matching, vision semantic distillation, vision-language affinity distillation.

Keys: `matching_cost`; `vsd.PAIRS_sum` and `vlad.PAIRS_sum`, where PAIRS is `matched` (the pairs of the matching) or
`same_place` (the i-th vision tokens of both sides). The matching and the teacher's affinities, which a case gives as
inputs too, are computed here.
"""

import torch
from torch import Tensor

from alignkd.student_train.losses.vision.matching import cheapest_pairs, logit_distances
from alignkd.student_train.losses.vision.vlad import vlad_loss
from alignkd.student_train.losses.vision.vsd import vsd_loss
from alignkd.vlm.relations import cosines
from cases.objectives.case import Case, Found

Pairs = tuple[Tensor, Tensor]


def evaluate(case: Case) -> Found:
    """Values and gradients of one case."""
    inputs, found = case.leaves, Found()
    student_logits, teacher_logits = inputs["student_vision_logits"], inputs["teacher_vision_logits"]
    distances = logit_distances(student_logits.detach(), teacher_logits.detach())
    rows, columns = map(torch.from_numpy, cheapest_pairs(distances.numpy()))
    found.add(case, "matching_cost", distances[rows, columns].sum())
    together = torch.arange(min(distances.shape))
    for name, pairs in {"matched": (rows, columns), "same_place": (together, together)}.items():
        vsd = vsd_loss(student_logits[pairs[0]], teacher_logits[pairs[1]].detach())
        found.add(case, f"vsd.{name}_sum", vsd.total, gradient=f"vsd.{name}")
        found.add(case, f"vlad.{name}_sum", _vlad(case, pairs), gradient=f"vlad.{name}")
    return found


def _vlad(case: Case, pairs: Pairs) -> Tensor:
    inputs = case.leaves
    teacher = cosines(inputs["teacher_vision_states"][pairs[1]], inputs["teacher_text_states"]).detach()
    student = cosines(inputs["student_vision_states"][pairs[0]], inputs["student_text_states"])
    mask = torch.ones_like(student, dtype=torch.bool)
    return vlad_loss(student[None], teacher[None], mask[None]).total
