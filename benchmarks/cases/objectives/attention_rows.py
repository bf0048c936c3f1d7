"""The attention loss row by row: `mse`, `kl`, `row_cosine`, and rows weighed by the teacher's attention.

Keys: `FORM.sum` and `FORM.weighted_by_WEIGHTS`, the sum of weight times loss divided by the sum of the weights. Inputs:
`teacher_columns` [H, R, C], `student_scores` [H, R, L] of which the first C keys are the columns, `mean_map` [H, C].
"""

import torch

from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.match import AttentionForm, HeadWeights
from alignkd.student_train.objective.attention.row_reference import RowReference, row_weights
from alignkd.student_train.objective.attention.rows_of_pair import RowsOfPair
from alignkd.student_train.objective.attention.term import chunked_attention_loss
from cases.attention_inputs import student_rows, teacher_columns
from cases.objectives.case import Case, Found

FORMS: dict[str, AttentionForm] = {"mse": "mse", "kl_with_rest": "kl", "cosine": "row_cosine"}
SUM, WEIGHTED = "sum", "weighted_by_"


def evaluate(case: Case) -> Found:
    """Sums and weighted means of the forms that the case names."""
    found = Found()
    for key in case.expected:
        name, _, figure = key.partition(".")
        if name not in FORMS:
            continue
        if figure == SUM:
            found.add(case, key, rows_loss(case, FORMS[name]).total, gradient=name)
        elif figure.startswith(WEIGHTED):
            reference = reference_of(case, figure.removeprefix(WEIGHTED))
            found.add(case, key, rows_loss(case, FORMS[name], reference).mean, gradient=key)
    return found


def rows_loss(case: Case, form: AttentionForm, reference: RowReference | None = None) -> LossSum:
    """The loss of each head against the same head of the teacher, two rows at a time."""
    teacher_HRC, scores_HRL = case.inputs["teacher_columns"], case.leaves["student_scores"]
    pair = RowsOfPair(
        targets=teacher_columns(teacher_HRC[None]),
        teacher=(0,),
        heads=HeadWeights(weight_ST=torch.eye(len(teacher_HRC), dtype=teacher_HRC.dtype)),
        form=form,
        reference=reference,
    )
    chunk_bytes = 4 * 2 * scores_HRL.shape[0] * scores_HRL.shape[2]
    return chunked_attention_loss(pair, student_rows(scores_HRL[None]), chunk_bytes=chunk_bytes)


def reference_of(case: Case, kind: str) -> RowReference:
    """Weights divided by their mean over the rows of the case."""
    assert kind in ("sharpness", "surprise"), kind
    teacher_BHRC, mean_map_HC = case.inputs["teacher_columns"][None], case.inputs["mean_map"]
    weights = row_weights(kind, teacher_BHRC, torch.tensor([teacher_BHRC.shape[-1]]), mean_map_HC)
    return RowReference(kind, weights.mean(), mean_map_HC)
