"""One micro-batch: what the student reads and what its teacher said about it.

Shape letters: B samples, I of them with an image, R attention rows, C attention columns, Ht teacher heads, P vision
tokens, K selected vision tokens, Dt teacher hidden size, N supervised positions of the whole batch, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from student_train.losses.sparse_distribution import SparseDistribution
from vlm.batch import SequenceBatch


@dataclass(frozen=True, kw_only=True)
class AttentionTargets:
    """First-layer attention of the teacher, padded on the right; a text-only sample has 0 rows.

    Attributes:
        rows_BR, cols_BC: int64 positions in the spliced sequence, 0 where padded.
        num_rows_B, num_cols_B: real rows and columns, plain integers.
        teacher_BHRC: float16 or float32, 0 where padded.
    """

    rows_BR: Tensor
    cols_BC: Tensor
    num_rows_B: list[int]
    num_cols_B: list[int]
    teacher_BHRC: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The targets with every tensor on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("rows_BR", "cols_BC", "teacher_BHRC")}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """B samples and their targets; a target is None when no loss wants it or no sample of the batch has it.

    Attributes:
        sequences: what the student reads.
        supervised_N: int64, supervised positions in the flattened [B * L]; known ahead, so that no forward pass
            waits for the accelerator to count a mask.
        labels_N: int64, the token that follows each of them.
        attention: targets of eq. 1.
        vision_all_IPD: teacher vision embeddings, one row per image in batch order.
        top_index_IK: int64, the tokens of eq. 2.
        top_embeddings_IKD: teacher vision embeddings at those tokens.
        logits: full [N, V] or truncated, positions as in `supervised_N`.
    """

    sequences: SequenceBatch
    supervised_N: Tensor
    labels_N: Tensor
    attention: AttentionTargets | None = None
    vision_all_IPD: Tensor | None = None
    top_index_IK: Tensor | None = None
    top_embeddings_IKD: Tensor | None = None
    logits: Tensor | SparseDistribution | None = None

    def to(self, device: torch.device | str) -> Self:
        """The batch with every tensor on `device`."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value.to(device) for name, value in fields.items()})
