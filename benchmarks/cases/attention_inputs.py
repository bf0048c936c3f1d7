"""Attention of teacher and student as the attention loss gets it, from scores and maps."""

import torch
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.vlm.attention.attention_rows import RowInputs


def student_rows(scores_BHRL: Tensor, *, causal: bool = False) -> RowInputs:
    """Queries and keys that have these scores: the keys are unit vectors."""
    num, heads, rows, length = scores_BHRL.shape
    visible_BRL = torch.ones(num, rows, length, dtype=torch.bool)
    return RowInputs(
        query_BHRd=scores_BHRL,
        key_BHLd=torch.eye(length, dtype=scores_BHRL.dtype).expand(num, heads, -1, -1),
        rows_BR=torch.arange(rows).expand(num, -1),
        scaling=1.0,
        visible_BRL=visible_BRL.tril() if causal else visible_BRL,
    )


def teacher_columns(maps_BHRC: Tensor, *, layers: int = 1) -> AttentionTargets:
    """The first rows and columns of the teacher's maps.

    Args:
        maps_BHRC: the heads of each layer one after the other.
        layers: how many layers they are, numbered from 0.
    """
    num, _, rows, cols = maps_BHRC.shape
    return AttentionTargets(
        rows_BR=torch.arange(rows).expand(num, -1),
        cols_BC=torch.arange(cols).expand(num, -1),
        num_rows_B=[rows] * num,
        num_cols_B=[cols] * num,
        coded_BRHC=EncodedTensor.plain(maps_BHRC.transpose(1, 2)),
        layers=tuple(range(layers)),
    )
