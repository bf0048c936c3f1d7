"""Losses on pairs of a chosen and a rejected answer, from log-probabilities of whole answers.

With c and r the log-probability of the chosen and of the rejected answer under the student minus that under the
reference (here the teacher), m = c - r the margin, b beta and s the smoothing:

    dpo         -(1 - s) ln sigma(b m) - s ln sigma(-b m)        arXiv 2305.18290; s: 2310.12036, section 5
    ipo         (m - 1 / (2 b))^2                                arXiv 2310.12036
    kto_pair    sigma(-b (c - K_r)) + sigma(-b (K_c - r))        LLaVA-MoD, arXiv 2408.15881
    margin_mse  m^2                                              arXiv 2010.02666: both margins are equal

K_c and K_r are the means of c and r over the batch, at least 0. `margin_mse` is `ipo` for 1 / (2 b) -> 0.

Shape letter: G pairs.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype

PreferenceLoss = Literal["dpo", "ipo", "kto_pair", "margin_mse"]
PREFERENCE_LOSSES: Final[tuple[str, ...]] = get_args(PreferenceLoss)


@dataclass(frozen=True, kw_only=True)
class BatchMeans:
    """K_c and K_r of `kto_pair`: scalars of the batch whose means they are."""

    chosen: Tensor
    rejected: Tensor

    @classmethod
    def of(cls, chosen_G: Tensor, rejected_G: Tensor) -> "BatchMeans":
        """The means over these pairs, at least 0, with gradient; 0 without a pair."""
        count = max(1, len(chosen_G))
        return cls(chosen=(chosen_G.sum() / count).clamp(min=0), rejected=(rejected_G.sum() / count).clamp(min=0))

    def detach(self) -> "BatchMeans":
        """The same numbers without gradient."""
        return BatchMeans(chosen=self.chosen.detach(), rejected=self.rejected.detach())


def dpo_loss(margin_G: Tensor, *, beta: float, smoothing: float = 0.0) -> LossSum:
    """`dpo`; beta 0 gives ln 2 for each pair."""
    scaled_G = beta * to_accum_dtype(margin_G)
    return LossSum.of(-(1 - smoothing) * logsigmoid(scaled_G) - smoothing * logsigmoid(-scaled_G))


def ipo_loss(margin_G: Tensor, *, beta: float) -> LossSum:
    """`ipo`; beta is above 0."""
    return LossSum.of((to_accum_dtype(margin_G) - 1 / (2 * beta)).square())


def margin_mse_loss(margin_G: Tensor) -> LossSum:
    """`margin_mse`: squared difference of the student's margin and the reference's."""
    return LossSum.of(to_accum_dtype(margin_G).square())


def kto_pair_loss(chosen_G: Tensor, rejected_G: Tensor, means: BatchMeans, *, beta: float) -> LossSum:
    """`kto_pair`: the sum of both halves of each pair.

    Args:
        chosen_G, rejected_G: c and r.
        means: of the batch; LLaVA-MoD's have a gradient.
    """
    chosen_G, rejected_G = to_accum_dtype(chosen_G), to_accum_dtype(rejected_G)
    halves = torch.sigmoid(beta * (means.rejected - chosen_G)), torch.sigmoid(beta * (rejected_G - means.chosen))
    return LossSum.of(halves[0] + halves[1])


def preference_loss(
    kind: PreferenceLoss,
    chosen_G: Tensor,
    rejected_G: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
    means: BatchMeans | None = None,
) -> LossSum:
    """The loss of this name.

    Args:
        chosen_G, rejected_G: log-probability of each answer under the student minus that under the reference.
        smoothing: share of pairs whose answers are assumed to be exchanged; only `dpo` has it.
        means: for `kto_pair`; None: those of these pairs, without gradient.
    """
    if kind == "kto_pair":
        means = means or BatchMeans.of(to_accum_dtype(chosen_G), to_accum_dtype(rejected_G)).detach()
        return kto_pair_loss(chosen_G, rejected_G, means, beta=beta)
    margin_G = chosen_G - rejected_G
    if kind == "dpo":
        return dpo_loss(margin_G, beta=beta, smoothing=smoothing)
    return ipo_loss(margin_G, beta=beta) if kind == "ipo" else margin_mse_loss(margin_G)
