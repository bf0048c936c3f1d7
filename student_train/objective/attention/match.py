"""How the attention of student and teacher is compared: pairs of layers, form, heads, weights of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from alignkd.student_train.losses.attention.row_weights import RowWeights
from alignkd.student_train.objective.adapters import group_means
from alignkd.vlm.families.family import ModelConfig

AttentionForm = Literal["mse", "kl", "cosine", "row_cosine", "filtered_cosine"]
# float32 copies that the loss of a form holds of a chunk of rows: over all keys, and over the selected columns
COPIES_OF_FORM: dict[AttentionForm, tuple[int, int]] = {
    "mse": (1, 4),
    "kl": (3, 4),
    "cosine": (1, 7),
    "row_cosine": (1, 9),
    "filtered_cosine": (1, 8),
}
# forms that compare whole maps: one element for each map, and no weights of rows
MAP_FORMS: tuple[AttentionForm, ...] = ("cosine", "filtered_cosine")
AttentionHeads = Literal["adapter", "grouped", "mean"]


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """A decoder layer of the student, and the teacher's layers whose mean it is compared with."""

    student: int
    teacher: tuple[int, ...]

    def __str__(self) -> str:
        teacher = ", ".join(map(str, self.teacher))
        return f"{self.student}: {teacher if len(self.teacher) == 1 else f'[{teacher}]'}"


@dataclass(frozen=True, kw_only=True)
class AttentionMatch:
    """How the attention of student and teacher is compared.

    Attributes:
        pairs: which layers; rising numbers of the student's.
        form: measure of the difference.
        heads: `adapter` compares each student head with a trained mixture of the teacher's heads, `grouped` with the
            mean of its group of them, `mean` the means of all heads of both.
        row_weights: which rows count more.
        of_layers: as in `stored_attention`.
    """

    pairs: tuple[LayerPair, ...]
    form: AttentionForm = "mse"
    heads: AttentionHeads = "adapter"
    row_weights: RowWeights = "none"
    of_layers: bool = False

    def compared_heads(self, student_heads: int) -> int:
        """Maps of one layer of a sample that are compared."""
        return 1 if self.heads == "mean" else student_heads

    @property
    def student_layers(self) -> tuple[int, ...]:
        """The layers of the student whose queries and keys are needed."""
        return tuple(pair.student for pair in self.pairs)

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """The teacher's layers whose attention is needed, rising."""
        return tuple(sorted({layer for pair in self.pairs for layer in pair.teacher}))

    def __str__(self) -> str:
        return shown_pairs(self.pairs)


def first_layers(student: ModelConfig) -> AttentionMatch:
    """The comparison of Align-KD: the first layer that has attention, of both; batches carry no other layer."""
    return AttentionMatch(pairs=(LayerPair(student=student.attention_layer, teacher=(0,)),))


def shown_pairs(pairs: Sequence[LayerPair]) -> str:
    """Pairs as a configuration writes them: `0: 0, 1: [1, 2]`."""
    return ", ".join(map(str, pairs))


class FixedHeads(nn.Module):
    """The weights of the teacher's heads where they are not trained: `grouped` and `mean`.

    They follow from the numbers of heads, so they are in no checkpoint.
    """

    weight_ST: Tensor

    def __init__(self, heads: AttentionHeads, *, num_students: int, num_teachers: int) -> None:
        super().__init__()
        weight_ST = group_means(1 if heads == "mean" else num_students, num_teachers)
        self.register_buffer("weight_ST", weight_ST.to(torch.float32), persistent=False)


@dataclass(frozen=True, kw_only=True)
class HeadWeights:
    """The mixture of the teacher's heads that the student's heads of one layer are compared with.

    Attributes:
        weight_ST: row s is what head s is compared with.
        bias_S: is added; None without an adapter.
        of_mean: whether the mean of the student's heads is compared, S = 1.
    """

    weight_ST: Tensor
    bias_S: Tensor | None = None
    of_mean: bool = False

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that an adapter trains."""
        return [] if self.bias_S is None else [self.weight_ST, self.bias_S]
