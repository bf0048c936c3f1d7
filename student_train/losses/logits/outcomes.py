"""Log-probabilities of a few tokens per position and the log-mass of all others, from ONE pass over the logits.

Cross-entropy and every loss on a truncated teacher need nothing else. Autograd through log-softmax, mask and
log-sum-exp holds up to seven [N, V] tensors; here value and gradient share the memory of one.

Let T be the tokens that are not kept, u the softmax within T, m the share of T in all mass, g the incoming gradient of
the outcomes, G its sum over all outcomes, and g_T that of the log-mass. Then the gradient with respect to the logits is

    u * (g_T - m G)  on T,      g_k - q_k G  on a kept token k of probability q_k.

The log of the sum of q^2 over T, whose incoming gradient is s, has the gradient 2 s (w - q) on T, with
w = u^2 / (sum of u^2), and -2 s q on kept tokens. So 2 s is a part of G, and 2 s w is added on T.

Kept tokens are masked before the pass, so the mass of T is the sum over its own members. 1 - sum(kept) would lose all
precision when it is small.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Log-probabilities (natural logs) of some outcomes at N positions; None if they were not requested.

    Attributes:
        label_logprobs_N: log-probabilities of the labels.
        logprobs_NK: log-probabilities of `ids_NK`, also of those that are not kept.
        tail_logmass_N: log of the mass of all tokens that are not kept; -inf if every token is kept.
        vocab_size: V.
        tail_log_squares_N: log of the sum of the squared probabilities of all tokens that are not kept; -inf if every
            token is kept.
    """

    label_logprobs_N: Tensor | None
    logprobs_NK: Tensor | None
    tail_logmass_N: Tensor
    vocab_size: int
    tail_log_squares_N: Tensor | None = None


def outcomes(
    logits_NV: Tensor,
    *,
    labels_N: Tensor | None = None,
    ids_NK: Tensor | None = None,
    kept_NK: Tensor | None = None,
    squares: bool = False,
    overwrite: bool = False,
) -> Outcomes:
    """Compute the outcomes; differentiable once.

    Args:
        logits_NV: float32 or float64.
        labels_N: int64, one token per position.
        ids_NK: int64.
        kept_NK: bool, which of `ids_NK` do not belong to the tail, each token at most once; None keeps none.
        squares: whether `tail_log_squares_N` is computed.
        overwrite: use the memory of the logits. They, and all tensors that share it, are destroyed, and the graph can
            be used for one backward pass only.
    """
    label_logprobs_N, logprobs_NK, tail_N, squares_N = _Outcomes.apply(
        logits_NV, labels_N, ids_NK, kept_NK, squares, overwrite
    )
    return Outcomes(
        label_logprobs_N=label_logprobs_N,
        logprobs_NK=logprobs_NK,
        tail_logmass_N=tail_N,
        vocab_size=logits_NV.shape[1],
        tail_log_squares_N=squares_N,
    )


class _Outcomes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        labels_N: Tensor | None,
        ids_NK: Tensor | None,
        kept_NK: Tensor | None,
        squares: bool,
        overwrite: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
        tail_NV = logits_NV.detach() if overwrite else logits_NV.clone()
        label_N = None if labels_N is None else tail_NV.gather(1, labels_N[:, None])[:, 0]
        logprobs_NK = None if ids_NK is None else tail_NV.gather(1, ids_NK)
        if kept_NK is not None:  # adds 0 for a padded slot, which may point to a kept token
            assert ids_NK is not None and logprobs_NK is not None
            tail_NV.scatter_add_(1, ids_NK, torch.zeros_like(logprobs_NK).masked_fill_(kept_NK, -torch.inf))
        # a position that keeps every token has -inf here, and 0 / 1 for its softmax
        highest_N1 = tail_NV.amax(-1, keepdim=True).clamp_(min=torch.finfo(tail_NV.dtype).min)
        sum_N1 = tail_NV.sub_(highest_N1).exp_().sum(-1, keepdim=True)
        tail_N1 = highest_N1 + sum_N1.log()
        log_normaliser_N1 = tail_N1
        if kept_NK is not None and logprobs_NK is not None:
            kept_N1 = logprobs_NK.masked_fill(~kept_NK, -torch.inf).logsumexp(-1, keepdim=True)
            log_normaliser_N1 = torch.logaddexp(tail_N1, kept_N1)
        label_N = None if label_N is None else label_N.sub_(log_normaliser_N1[:, 0])
        logprobs_NK = None if logprobs_NK is None else logprobs_NK.sub_(log_normaliser_N1)
        logmass_N = (tail_N1 - log_normaliser_N1)[:, 0]
        norm_N1 = torch.linalg.vector_norm(tail_NV, dim=-1, keepdim=True) if squares else None
        squares_N = None
        if norm_N1 is not None:
            squares_N = 2 * (highest_N1 + norm_N1.log() - log_normaliser_N1)[:, 0]
            norm_N1 = norm_N1.clamp(min=1)  # the highest is 1, or there is no tail
        ctx.save_for_backward(tail_NV, sum_N1.clamp_(min=1), logmass_N, labels_N, ids_NK, kept_NK, logprobs_NK, norm_N1)
        ctx.overwrite = overwrite
        return label_N, logprobs_NK, logmass_N, squares_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        label_grad_N: Tensor | None,
        grad_NK: Tensor | None,
        tail_grad_N: Tensor,
        squares_grad_N: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        tail_NV, sum_N1, logmass_N, labels_N, ids_NK, kept_NK, logprobs_NK, norm_N1 = ctx.saved_tensors
        total_N = tail_grad_N.clone()
        if label_grad_N is not None:
            total_N += label_grad_N
        if grad_NK is not None:
            total_N += grad_NK.sum(-1)
        if squares_grad_N is not None:
            total_N += 2 * squares_grad_N
        factor_N1 = (tail_grad_N - logmass_N.exp() * total_N)[:, None] / sum_N1
        if norm_N1 is not None and squares_grad_N is not None:
            factor_N1 = tail_NV * (2 * squares_grad_N[:, None] / norm_N1.square()) + factor_N1  # [N, V]
        grad_logits_NV = tail_NV.mul_(factor_N1) if ctx.overwrite else tail_NV * factor_N1
        if kept_NK is not None and grad_NK is not None:  # the tail's gradient lacks their share of the softmax
            grad_NK = grad_NK - (logprobs_NK.exp() * total_N[:, None]).masked_fill_(~kept_NK, 0.0)
        if ids_NK is not None and grad_NK is not None:
            grad_logits_NV.scatter_add_(1, ids_NK, grad_NK)
        if labels_N is not None and label_grad_N is not None:
            grad_logits_NV.scatter_add_(1, labels_N[:, None], label_grad_N[:, None])
        return grad_logits_NV, None, None, None, None, None
