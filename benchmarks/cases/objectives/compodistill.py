"""Attention of middle layers: `cosine` (the paper's form) and `filtered_cosine` (that of the released code).

Inputs: `teacher_scores` [Lt, B, Ht, L, L], `student_scores` [Ls, B, Hs, L, L], `num_vision` P. The first P positions
are vision tokens. Layer i of the student is compared with the mean of `group_size` layers of the teacher from i on.
"""

import torch
from torch import Tensor

from alignkd.student_train.objective.attention.map_losses import chunked_map_loss
from alignkd.student_train.objective.attention.match import AttentionForm, HeadWeights
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from cases.attention_inputs import student_rows, teacher_columns
from cases.objectives.case import Case, Found

FORMS: dict[str, AttentionForm] = {"paper": "cosine", "released": "filtered_cosine"}
SUM, GROUP = "sum_over_layers_and_samples", "group_size"


def evaluate(case: Case) -> Found:
    """The sum over layers and samples, in the forms that the case names."""
    found = Found(parameters=frozenset({GROUP}))
    for key in case.expected:
        name, _, figure = key.partition(".")
        if name in FORMS and figure == SUM:
            found.add(case, key, total(case, FORMS[name]), gradient=name)
    return found


def total(case: Case, form: AttentionForm) -> Tensor:
    """The sum over the student's layers and the samples."""
    teacher, num_vision = case.inputs["teacher_scores"], int(case.inputs["num_vision"])
    length = teacher.shape[-1]
    future_LL = torch.ones(length, length, dtype=torch.bool).triu(1)
    maps = teacher.masked_fill(future_LL, -torch.inf).softmax(-1)[..., :num_vision]
    layers, samples, heads = maps.shape[:3]
    mean = HeadWeights(weight_ST=torch.full((1, heads), 1 / heads, dtype=maps.dtype), of_mean=True)
    found = maps.new_zeros(())
    for place, scores_BHLL in enumerate(case.leaves["student_scores"]):
        pair = RowsOfPair(
            # the heads of all layers side by side, sample by sample
            targets=teacher_columns(maps.transpose(0, 1).flatten(1, 2), layers=layers),
            teacher=tuple(range(place, place + case.expected[GROUP])),
            heads=mean,
            form=form,
            vision_BR=(torch.arange(length) < num_vision).expand(samples, -1),
        )
        # three rows at a time
        chunk_bytes = 4 * samples * 3 * max(scores_BHLL.shape[1] * length, heads * num_vision)
        rows = student_rows(scores_BHLL, causal=True)
        found = found + chunked_map_loss(pair, rows, samples, chunk_bytes=chunk_bytes).total
    return found
