"""The gradients of one optimiser step, summed over its micro-batches."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class Gradients:
    """Gradients of all trained weights.

    16-bit gradients of several micro-batches are added up in float32: a hook adds the gradient of a weight as soon as
    the backward pass has computed it, and frees it. The gradient of a single micro-batch needs no sum and keeps its
    dtype, as do all gradients without `in_float32`.

    Args:
        weights: the trained weights, of one dtype.
        in_float32: add up 16-bit gradients in float32.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, in_float32: bool) -> None:
        self._weights = weights
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._begun: set[nn.Parameter] = set()
        self._adds = False
        self._may_add = in_float32 and weights[0].dtype != torch.float32
        if self._may_add:
            for weight in weights:
                weight.register_post_accumulate_grad_hook(self._add)

    def start_step(self, micro_batches: int) -> None:
        """Call before the first backward pass of a step with so many of them."""
        self._adds = self._may_add and micro_batches > 1
        if self._adds and not self._sums:  # all at once, before activations are between them
            self._sums = {weight: torch.empty_like(weight, dtype=torch.float32) for weight in self._weights}

    def of(self, weight: nn.Parameter) -> Tensor:
        """The gradient of a weight, float32 or in the dtype of the weight; 0 where no backward pass reached it."""
        if not self._adds:
            return torch.zeros_like(weight) if weight.grad is None else weight.grad
        return self._sums[weight] if weight in self._begun else self._sums[weight].zero_()

    def norm(self) -> Tensor:
        """L2 norm of all gradients, float32 on their device; rows are summed in float32, their sums in float64."""
        rows = [torch.linalg.vector_norm(self.of(w), dim=-1, dtype=torch.float32).view(-1) for w in self._weights]
        return torch.cat(rows).double().square().sum().sqrt().float()

    def drop(self, weight: nn.Parameter) -> None:
        """Free the gradient of a weight; the memory of sums is kept for the next step."""
        weight.grad = None
        self._begun.discard(weight)

    def end_step(self) -> None:
        """Drop every gradient."""
        for weight in self._weights:
            self.drop(weight)
        self._adds = False

    @torch.no_grad()
    def _add(self, weight: Tensor) -> None:
        if not self._adds:
            return
        weight = cast(nn.Parameter, weight)
        assert weight.grad is not None
        if weight in self._begun:
            self._sums[weight].add_(weight.grad)
        else:
            self._sums[weight].copy_(weight.grad)
            self._begun.add(weight)
        weight.grad = None
