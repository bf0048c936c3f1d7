"""What the weights of attention rows are measured against: figures of a fixed choice of samples.

Weights are divided by their mean over these samples, so that the mean weight of a row is 1 and the divisor of the loss
stays the count of the global batch. Dividing by the sum over the global batch itself would need another exchange
between ranks before the first backward pass of a step.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from alignkd.student_train.losses.attention.row_weights import RowWeights, sharpness, surprise


class RowReference(nn.Module):
    """Weights of the rows of one pair of layers. It is in no checkpoint: a run keeps it in a file of its own.

    Args:
        kind: which weights.
        mean_weight: their mean over the reference, a scalar.
        mean_map_HC: mean of renormalised rows through one image; of heads, or [1, C]; None for `sharpness`.
    """

    mean_weight: Tensor
    mean_map_HC: Tensor | None

    def __init__(self, kind: RowWeights, mean_weight: Tensor, mean_map_HC: Tensor | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("mean_weight", mean_weight, persistent=False)
        self.register_buffer("mean_map_HC", mean_map_HC, persistent=False)

    def forward(self, teacher_BHrC: Tensor, num_cols_B: Tensor) -> Tensor:
        """Weights [B, H, r] of rows of probabilities, 0 where padded."""
        return row_weights(self.kind, teacher_BHrC, num_cols_B, self.mean_map_HC) / self.mean_weight


def row_weights(kind: RowWeights, teacher_BHrC: Tensor, num_cols_B: Tensor, mean_map_HC: Tensor | None) -> Tensor:
    """Weights before they are divided by their mean, [B, H, r]."""
    if kind == "sharpness":
        return sharpness(teacher_BHrC, num_cols_B)
    assert kind == "surprise" and mean_map_HC is not None
    return surprise(teacher_BHrC, num_cols_B, mean_map_HC)


class RowReferences(nn.ModuleList):
    """One reference for each pair of layers."""

    def __init__(self, references: Sequence[RowReference]) -> None:
        super().__init__(references)

    def of_pair(self, place: int) -> RowReference:
        """The reference of the pair at a place in `AttentionMatch.pairs`."""
        found = self[place]
        assert isinstance(found, RowReference)
        return found
