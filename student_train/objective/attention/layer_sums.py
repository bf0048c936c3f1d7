"""The attention loss of one optimiser step by the student's layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum

TERM = "attention"


class LayerSums:
    """Adds up the totals of the attention loss by layer; they stay on the device until `totals`.

    Args:
        layers: the student's layers that the loss compares, at least two.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._found: list[Tensor] = []

    def add(self, loss: LossSum) -> None:
        """Keep the totals of one micro-batch; a loss without elements has none."""
        if loss.by_layer:
            self._found.append(torch.stack([loss.by_layer[layer] for layer in self.layers]))

    def totals(self) -> list[float]:
        """Sums of this rank, layer by layer: to be added over all ranks."""
        if not self._found:
            return [0.0] * len(self.layers)
        found: list[float] = torch.stack(self._found).sum(0).tolist()
        return found

    def means(self, totals: Sequence[float], count: int) -> dict[int, float | None]:
        """Mean of the loss in each layer; None if the global batch has no element of it.

        Args:
            totals: the sums of `totals` over all ranks.
            count: elements of the loss in the global batch. Each layer has an equal share of them.
        """
        share = count // len(self.layers)
        return {layer: total / share if share else None for layer, total in zip(self.layers, totals, strict=True)}
