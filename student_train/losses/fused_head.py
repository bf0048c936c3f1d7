"""Losses of next-token logits fused with the output head: no [N, V] tensor is ever held.

The head's product, the losses and the gradients of states and weight are done chunk after chunk of positions IN THE
FORWARD PASS; the backward pass only scales them. Making logits again in the backward pass would cost a fourth product
of N * V * D; keeping them, N * V numbers of several kinds. The idea is that of Liger's fused losses (arXiv
2410.10989), in plain torch.

What follows from gradients before the backward pass:

* How the terms are weighted against each other must be known before; a common factor (1 / count, the loss scale of
  float16) may come later. The backward pass checks that this is so and refuses other gradients.
* No loss scale protects float16 slopes yet: every chunk scales its own into float16's range by a power of two. What is
  kept until the scale comes is float32.

Shape letters: N supervised positions, n of a chunk, V vocabulary, D the student's hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from alignkd.student_train.losses.inner_autograd import value_and_gradients
from alignkd.student_train.losses.loss_sum import accumulable

CHUNK_BYTES = 64 << 20
# A term's sum over a chunk: logits [n, V] in float32 (or float64) and which of the N positions they are.
HeadTerm = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightedTerm:
    """A term of the loss and its weight against the other terms."""

    term: HeadTerm
    weight: float


@dataclass(frozen=True, kw_only=True)
class JointTerms:
    """All terms of the loss from one look at a chunk's logits, which they may write over, and their weights."""

    terms: Callable[[Tensor, slice], Sequence[Tensor]]
    weights: Sequence[float]

    @classmethod
    def of(cls, terms: Sequence[WeightedTerm]) -> Self:
        """Terms that each look for themselves and leave the logits as they are."""
        return cls(
            terms=lambda logits_nV, chunk: [weighted.term(logits_nV, chunk) for weighted in terms],
            weights=[weighted.weight for weighted in terms],
        )


def fused_head_losses(
    hidden_ND: Tensor, lm_head_VD: Tensor, terms: Sequence[WeightedTerm] | JointTerms, *, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, ...]:
    """Every term's sum over N positions, unweighted.

    Args:
        hidden_ND: the student's states after its final norm; N may be 0.
        lm_head_VD: its output head, in the dtype of the states, which is that of the logits' product.
        terms: summed with each other by their weights, times any common factor.
        chunk_bytes: most that the float32 logits of one chunk take, but at least one position's. A loss holds a small
            multiple of it; with it the peak does not depend on N but for the [N, D] gradient of the states.

    Returns:
        Scalars, float32 (float64 for float64 input). Beside them a float32 [V, D] and [N, D] are kept for the backward
        pass; nothing where no gradient is wanted.

    Raises:
        ValueError: in the backward pass: incoming gradients that are no common multiple of the weights.
    """
    joint = terms if isinstance(terms, JointTerms) else JointTerms.of(terms)
    assert all(weight > 0 for weight in joint.weights), joint
    positions = max(1, chunk_bytes // (max(4, lm_head_VD.element_size()) * len(lm_head_VD)))
    chunks = [slice(start, start + positions) for start in range(0, len(hidden_ND), positions)]
    totals: tuple[Tensor, ...] = _FusedHead.apply(hidden_ND, lm_head_VD, joint, chunks, torch.is_grad_enabled())
    return totals


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        lm_head_VD: Tensor,
        joint: JointTerms,
        chunks: list[slice],
        grad_enabled: bool,
    ) -> tuple[Tensor, ...]:
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[:2]]
        sums = _Sums(hidden_ND, lm_head_VD, wanted, len(joint.weights))
        for chunk in chunks:
            hidden_nD = hidden_ND[chunk]
            logits_nV = accumulable(functional.linear(hidden_nD, lm_head_VD))
            if any(wanted):
                slopes_nV = _slopes(logits_nV, chunk, joint, sums.totals)
                sums.add_gradients(slopes_nV, chunk, hidden_nD, lm_head_VD)
            else:
                sums.totals += torch.stack([*joint.terms(logits_nV, chunk)]).detach()
        ctx.save_for_backward(sums.hidden_grad_ND, sums.lm_head_grad_VD)
        ctx.weights, ctx.dtypes = joint.weights, (hidden_ND.dtype, lm_head_VD.dtype)
        return tuple(total.clone() for total in sums.totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        factor = _common_factor(torch.stack(incoming), ctx.weights)
        scaled = [
            None if grad is None else _times(grad, factor, dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _Sums:
    """What is added up over chunks; a gradient is None where it is not wanted."""

    def __init__(self, hidden_ND: Tensor, lm_head_VD: Tensor, wanted: list[bool], num_terms: int) -> None:
        dtype = torch.float64 if lm_head_VD.dtype == torch.float64 else torch.float32
        self.totals = torch.zeros(num_terms, dtype=dtype, device=lm_head_VD.device)
        self.hidden_grad_ND, self.lm_head_grad_VD = (
            torch.zeros_like(like, dtype=dtype) if want else None
            for like, want in zip((hidden_ND, lm_head_VD), wanted, strict=True)
        )

    def add_gradients(self, slopes_nV: Tensor, chunk: slice, hidden_nD: Tensor, lm_head_VD: Tensor) -> None:
        """Add a chunk, given the slopes of its weighted loss along its logits."""
        slopes_nV, scale = _in_range(slopes_nV, lm_head_VD.dtype)
        if self.hidden_grad_ND is not None:
            self.hidden_grad_ND[chunk] = _product(slopes_nV, lm_head_VD) / scale
        if self.lm_head_grad_VD is None:
            return
        # A part of the vocabulary at a time, so that the products hold no second [V, D].
        for grad_vD, slopes_nv in zip(self.lm_head_grad_VD.chunk(8), slopes_nV.chunk(8, dim=1), strict=True):
            grad_vD += _product(slopes_nv.T, hidden_nD) / scale


def _slopes(logits_nV: Tensor, chunk: slice, joint: JointTerms, totals: Tensor) -> Tensor:
    """Gradient of the chunk's weighted loss along its logits; adds the terms to `totals`."""

    def weighted(leaf_nV: Tensor) -> Tensor:
        found = torch.stack([*joint.terms(leaf_nV, chunk)])
        totals.add_(found.detach())
        return found @ found.new_tensor(joint.weights)

    _, (slopes_nV,) = value_and_gradients(weighted, [logits_nV])
    return slopes_nV


def _in_range(slopes_nV: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """The slopes in the dtype of the products, and the power of two by which they were multiplied for it."""
    if dtype != torch.float16:
        return slopes_nV.to(dtype), 1.0
    largest = slopes_nV.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.exp2(14 - torch.frexp(largest).exponent.clamp(min=-100).float())
    return (slopes_nV * scale).half(), scale


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product summed AND given in float32: a chunk's sum is not rounded before the next is added."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _common_factor(incoming: Tensor, weights: Sequence[float]) -> Tensor:
    factors = incoming / incoming.new_tensor(weights)
    if not torch.allclose(factors, factors[:1], rtol=1e-4, atol=0.0, equal_nan=True):
        raise ValueError(
            f"gradients {incoming.tolist()} arrive at losses that were fused with weights {[*weights]}, which must be "
            "proportional; fuse them with the weights that they are summed with"
        )
    return factors[0]


def _times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
