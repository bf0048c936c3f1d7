"""Losses on next-token logits, fused with the output head: no [N, V] tensor is ever held.

For each chunk of positions, the head's product, the losses and the gradients of states and weight are computed IN THE
FORWARD PASS; the backward pass only scales them. Computing the logits again in the backward pass would cost a fourth
product of N * V * D; keeping them would cost several tensors of N * V numbers. The idea is that of Liger's fused losses
(arXiv 2410.10989), in plain torch.

Gradients that exist before the backward pass have two consequences:

* The weights of the terms relative to each other must be known in advance; a common factor (1 / count, the loss scale
  of float16) may be applied later. The backward pass checks this and refuses other gradients.
* No loss scale protects float16 gradients of logits yet, so every chunk scales its own into float16's range by a power
  of two. The gradients that are kept until the loss scale is applied are float32.

Shape letters: N supervised positions, n of a chunk, V vocabulary, D the student's hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from alignkd.student_train.losses.inner_autograd import gradients_of
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.student_train.losses.position_groups import chunks_of_groups
from alignkd.vlm.families.family import Head

CHUNK_BYTES = 64 << 20
# The value of a term at each position of a chunk [n], from its logits [n, V] in float32 (or float64) and its slice of
# the N positions.
HeadTerm = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True, kw_only=True)
class WeightedTerm:
    """A term of the loss and its weight relative to the other terms."""

    term: HeadTerm
    weight: float


@dataclass(frozen=True, kw_only=True)
class JointTerms:
    """One function that computes all terms from a chunk's logits, which it may overwrite, and the terms' weights.

    Attributes:
        terms: returns the value of each term at each position of a chunk [n], then that of each figure.
        weights: of the terms.
        num_figures: how many further values it returns, of which only the sums are wanted; they have no gradient.
    """

    terms: Callable[[Tensor, slice], Sequence[Tensor]]
    weights: Sequence[float]
    num_figures: int = 0

    @classmethod
    def of(cls, terms: Sequence[WeightedTerm]) -> Self:
        """Terms that are computed separately and do not overwrite the logits."""
        return cls(
            terms=lambda logits_nV, chunk: [weighted.term(logits_nV, chunk) for weighted in terms],
            weights=[weighted.weight for weighted in terms],
        )


def fused_head_losses(
    hidden_ND: Tensor,
    head: Head,
    terms: Sequence[WeightedTerm] | JointTerms,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    rows_of_position: int = 1,
    groups: Sequence[int] = (),
) -> list[LossSum]:
    """The sum of every term over N positions, unweighted; its parts are the positions.

    Args:
        hidden_ND: the student's hidden states after its final norm; N may be 0.
        head: its output head, with matrix and bias in the dtype of the states, in which their product is computed;
            scale and soft cap are applied in float32.
        terms: the terms; the caller sums them by these weights, times any common factor.
        chunk_bytes: largest size of the float32 logits of one chunk; a chunk has at least one position. A loss holds a
            small multiple of it. Apart from the [N, D] gradient of the states, the peak memory does not depend on N.
        rows_of_position: consecutive states that a term compares with one another; N is a multiple of it, and a chunk
            does not divide them.
        groups: sizes of the groups of consecutive positions that a term compares with one another, of which a chunk has
            as many as fit, but at least one; their sum is N. Empty: `rows_of_position` gives what belongs together.

    Returns:
        Sums in float32 (float64 for float64 input), those of the figures last; only the totals of the terms have a
        gradient. A float32 [V, D] and [N, D] are kept for the backward pass, unless no gradient is needed.

    Raises:
        ValueError: in the backward pass, if the incoming gradients are not proportional to the weights; on a GPU, which
            the host does not wait for, it is a failed assertion of the device.
    """
    joint = terms if isinstance(terms, JointTerms) else JointTerms.of(terms)
    assert all(weight > 0 for weight in joint.weights), joint
    weight_VD = head.weight_VD
    fitting = chunk_bytes // (max(4, weight_VD.element_size()) * len(weight_VD))
    if groups:
        assert sum(groups) == len(hidden_ND), (groups, len(hidden_ND))
        chunks = chunks_of_groups(groups, fitting)
    else:
        positions = rows_of_position * max(1, fitting // rows_of_position)
        chunks = [slice(start, start + positions) for start in range(0, len(hidden_ND), positions)]
    *totals, parts_TN = _FusedHead.apply(
        hidden_ND, weight_VD, head.bias_V, head, joint, chunks, torch.is_grad_enabled()
    )
    return [LossSum(total, len(hidden_ND), parts_N) for total, parts_N in zip(totals, parts_TN, strict=True)]


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        joint: JointTerms,
        chunks: list[slice],
        grad_enabled: bool,
    ) -> tuple[Tensor, ...]:
        inputs = (hidden_ND, weight_VD, bias_V)
        wanted = [grad_enabled and needed for needed in ctx.needs_input_grad[:3]]
        num_terms = len(joint.weights)
        sums = _Sums(inputs, wanted, num_terms + joint.num_figures)
        for chunk in chunks:
            hidden_nD = hidden_ND[chunk]
            logits_nV = _finished(to_accum_dtype(functional.linear(hidden_nD, weight_VD, bias_V)), head)
            if any(wanted):
                slope_nV = _slope(logits_nV, head)
                grad_logits_nV = _grad_logits(logits_nV, chunk, joint, sums)
                sums.add_gradients(_grad_products(grad_logits_nV, slope_nV, head), chunk, hidden_nD, weight_VD)
            else:
                sums.add_terms(joint.terms(logits_nV, chunk), chunk)
        ctx.save_for_backward(sums.hidden_grad_ND, sums.weight_grad_VD, sums.bias_grad_V)
        ctx.weights, ctx.dtypes = joint.weights, [None if like is None else like.dtype for like in inputs]
        totals = [total.clone() for total in sums.totals]
        ctx.mark_non_differentiable(*totals[num_terms:], sums.parts_TN)
        return (*totals, sums.parts_TN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        factor = _common_factor(incoming[: len(ctx.weights)], ctx.weights)  # figures and parts have none
        scaled = [
            None if grad is None else _times(grad, factor, dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)


class _Sums:
    """The sums over chunks; a gradient is None if it is not needed."""

    def __init__(self, inputs: tuple[Tensor, Tensor, Tensor | None], wanted: Sequence[bool], num_terms: int) -> None:
        """`inputs`: hidden states, matrix and bias."""
        weight_VD = inputs[1]
        dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
        self.totals = torch.zeros(num_terms, dtype=dtype, device=weight_VD.device)
        self.parts_TN = torch.zeros((num_terms, len(inputs[0])), dtype=dtype, device=weight_VD.device)
        self.hidden_grad_ND, self.weight_grad_VD, self.bias_grad_V = (
            torch.zeros_like(like, dtype=dtype) if want and like is not None else None
            for like, want in zip(inputs, wanted, strict=True)
        )

    def add_terms(self, terms: Sequence[Tensor], chunk: slice) -> Tensor:
        """Add the terms of a chunk, each [n]; return their sums [terms], with gradient."""
        part_TN = self.parts_TN[:, chunk]
        assert all(term_n.shape == part_TN.shape[1:] for term_n in terms), [term_n.shape for term_n in terms]
        part_TN.copy_(torch.stack([*terms]).detach())
        found = torch.stack([term_n.sum() for term_n in terms])
        self.totals += found.detach()
        return found

    def add_gradients(self, grad_nV: Tensor, chunk: slice, hidden_nD: Tensor, weight_VD: Tensor) -> None:
        """Add a chunk, given the gradient of its weighted loss with respect to matrix product plus bias."""
        if self.bias_grad_V is not None:
            self.bias_grad_V += grad_nV.sum(0)
        grad_nV, scale = _in_range(grad_nV, weight_VD.dtype)
        if self.hidden_grad_ND is not None:
            self.hidden_grad_ND[chunk] = _product(grad_nV, weight_VD) / scale
        if self.weight_grad_VD is None:
            return
        # A part of the vocabulary at a time, so that the products need no second [V, D].
        for grad_vD, grad_nv in zip(self.weight_grad_VD.chunk(8), grad_nV.chunk(8, dim=1), strict=True):
            grad_vD += _product(grad_nv.T, hidden_nD) / scale


def _finished(products_nV: Tensor, head: Head) -> Tensor:
    """`Head.finish` in the memory of the products."""
    if head.scale != 1.0:
        products_nV.mul_(head.scale)
    if head.softcap is not None:
        products_nV.div_(head.softcap).tanh_().mul_(head.softcap)
    return products_nV


def _slope(logits_nV: Tensor, head: Head) -> Tensor | None:
    """Derivative of the soft cap, from its values; None without one."""
    return None if head.softcap is None else logits_nV.div(head.softcap).square_().neg_().add_(1)


def _grad_products(grad_logits_nV: Tensor, slope_nV: Tensor | None, head: Head) -> Tensor:
    """The gradient with respect to matrix product plus bias; overwrites the slope."""
    if slope_nV is not None:
        grad_logits_nV = slope_nV.mul_(grad_logits_nV)
    return grad_logits_nV if head.scale == 1.0 else grad_logits_nV * head.scale


def _grad_logits(logits_nV: Tensor, chunk: slice, joint: JointTerms, sums: _Sums) -> Tensor:
    """Gradient of the chunk's weighted loss with respect to its logits; adds the terms to `sums`."""

    def weighted(leaf_nV: Tensor) -> Tensor:
        found = sums.add_terms(joint.terms(leaf_nV, chunk), chunk)
        weighted_totals = found[: len(joint.weights)]
        # numbers, not a tensor of them: the host would wait for its copy to the device
        return torch.stack([total * weight for total, weight in zip(weighted_totals, joint.weights, strict=True)]).sum()

    (grad_logits_nV,) = gradients_of(weighted, [logits_nV])
    return grad_logits_nV


def _in_range(grad_logits_nV: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
    """The gradient in the dtype of the products, and the power of two by which it was multiplied."""
    if dtype != torch.float16:
        return grad_logits_nV.to(dtype), 1.0
    largest = grad_logits_nV.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    scale = torch.exp2(14 - torch.frexp(largest).exponent.clamp(min=-100).float())
    return (grad_logits_nV * scale).half(), scale


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product summed AND returned in float32: a chunk's sum is not rounded before the next one is added."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _common_factor(incoming: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    factors = torch.stack([gradient / weight for gradient, weight in zip(incoming, weights, strict=True)])
    agree = torch.isclose(factors, factors[:1], rtol=1e-4, atol=0.0, equal_nan=True).all()
    if factors.device.type != "cpu":  # the host does not wait for the answer; the device stops with the message
        torch._assert_async(agree, "gradients are not proportional to the weights with which the losses were fused")
    elif not agree:
        raise ValueError(
            f"incoming gradients {[*map(float, incoming)]} are not proportional to the weights {[*weights]} with which "
            "the losses were fused; fuse them with the weights by which they are summed"
        )
    return factors[0]


def _times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
