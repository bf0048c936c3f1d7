"""Log-probabilities of a few tokens per position and the log-mass of all others, from ONE pass over the logits.

Cross-entropy and every loss on a truncated teacher look at nothing else. Autograd through log-softmax, mask and
log-sum-exp holds up to seven [N, V] tensors; here value and slope are written over one.

With T the tokens that are not kept, u the softmax within T and m its share of all mass, an incoming gradient g of the
outcomes (sum G over all, g_T of the log-mass) has along the logits the slope

    u * (g_T - m G)  on T,      g_k - q_k G  on a kept token k of probability q_k.

Kept tokens are taken out before the pass, so the mass of T is summed from its own members: 1 - sum(kept) would cancel
when it is small.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What of a distribution at N positions is looked at, natural logs; None where it was not asked for.

    Attributes:
        label_logprobs_N: of the labels.
        logprobs_NK: of `ids_NK`, also where nothing is kept.
        tail_logmass_N: of all tokens that are not kept; -inf where every token is.
        vocab_size: V.
    """

    label_logprobs_N: Tensor | None
    logprobs_NK: Tensor | None
    tail_logmass_N: Tensor
    vocab_size: int


def outcomes(
    logits_NV: Tensor,
    *,
    labels_N: Tensor | None = None,
    ids_NK: Tensor | None = None,
    kept_NK: Tensor | None = None,
    overwrite: bool = False,
) -> Outcomes:
    """Differentiable once.

    Args:
        logits_NV: float32 or float64.
        labels_N: int64, one token per position.
        ids_NK: int64.
        kept_NK: bool, which of `ids_NK` are no part of the tail, each token at most once; None: none.
        overwrite: use the logits' memory: they and all that shares it are lost, and so is the graph after one backward
            pass.
    """
    label_logprobs_N, logprobs_NK, tail_N = _Outcomes.apply(logits_NV, labels_N, ids_NK, kept_NK, overwrite)
    return Outcomes(
        label_logprobs_N=label_logprobs_N,
        logprobs_NK=logprobs_NK,
        tail_logmass_N=tail_N,
        vocab_size=logits_NV.shape[1],
    )


class _Outcomes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        labels_N: Tensor | None,
        ids_NK: Tensor | None,
        kept_NK: Tensor | None,
        overwrite: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
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
        ctx.save_for_backward(tail_NV, sum_N1.clamp_(min=1), logmass_N, labels_N, ids_NK, kept_NK, logprobs_NK)
        ctx.overwrite = overwrite
        return label_N, logprobs_NK, logmass_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, label_grad_N: Tensor | None, grad_NK: Tensor | None, tail_grad_N: Tensor
    ) -> tuple[Tensor | None, ...]:
        tail_NV, sum_N1, logmass_N, labels_N, ids_NK, kept_NK, logprobs_NK = ctx.saved_tensors
        total_N = tail_grad_N.clone()
        if label_grad_N is not None:
            total_N += label_grad_N
        if grad_NK is not None:
            total_N += grad_NK.sum(-1)
        factor_N1 = (tail_grad_N - logmass_N.exp() * total_N)[:, None] / sum_N1
        slopes_NV = tail_NV.mul_(factor_N1) if ctx.overwrite else tail_NV * factor_N1
        if kept_NK is not None and grad_NK is not None:  # their share of the softmax is missing in the tail's
            grad_NK = grad_NK - (logprobs_NK.exp() * total_N[:, None]).masked_fill_(~kept_NK, 0.0)
        if ids_NK is not None and grad_NK is not None:
            slopes_NV.scatter_add_(1, ids_NK, grad_NK)
        if labels_N is not None and label_grad_N is not None:
            slopes_NV.scatter_add_(1, labels_N[:, None], label_grad_N[:, None])
        return slopes_NV, None, None, None, None
