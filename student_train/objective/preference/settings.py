"""Settings of the loss on pairs of answers, and what it needs of a forward pass and of the global batch.

`kto_pair` compares each answer with two means over the GLOBAL batch (`BatchStatistics`). A step of several
micro-batches or ranks finds them in a pass without gradient over all of them (`run/preference_pass.py`).

Shape letter: G pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from alignkd.student_train.losses.inner_autograd import gradients_of
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.preference import BatchMeans, PreferenceLoss, preference_loss
from alignkd.vlm.families.family import Head

PREFERENCE = "preference"


@dataclass(frozen=True, kw_only=True)
class BatchStatistics:
    """What `kto_pair` needs of the global batch.

    Attributes:
        chosen, rejected: K_c and K_r.
        chosen_slope, rejected_slope: derivative of the loss summed over the global batch along c and r of any of its
            pairs by way of these means; 0 if they have no gradient.
    """

    chosen: float
    rejected: float
    chosen_slope: float = 0.0
    rejected_slope: float = 0.0

    def means_for(self, ratios_G2: Tensor) -> BatchMeans:
        """K_c and K_r as scalars beside these tensors, without gradient."""
        like = ratios_G2.new_zeros(())
        return BatchMeans(chosen=like + self.chosen, rejected=like + self.rejected)


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """The loss and its settings; see `losses/preference.py`.

    Attributes:
        means_have_gradient: of `kto_pair`, as in the code of LLaVA-MoD.
    """

    loss: PreferenceLoss
    beta: float = 0.1
    smoothing: float = 0.0
    means_have_gradient: bool = False

    @property
    def needs_statistics(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of the global batch."""
        return self.loss == "kto_pair"

    def of_ratios(self, ratios_G2: Tensor, means: BatchMeans | None) -> LossSum:
        """The loss of each pair; of `kto_pair` the mean of its halves, as its authors take the mean over all answers.

        Args:
            ratios_G2: c and r.
            means: see `preference_loss`.
        """
        found = preference_loss(
            self.loss, ratios_G2[:, 0], ratios_G2[:, 1], beta=self.beta, smoothing=self.smoothing, means=means
        )
        return LossSum.of(found.parts / 2) if self.loss == "kto_pair" else found


@dataclass(frozen=True, kw_only=True)
class PreferenceInputs:
    """What the term needs in addition to the forward pass.

    Attributes:
        settings: the loss.
        head: the student's head.
        num_tokens: see `HeadInputs`.
        chunk_bytes: see `fused_head_losses`.
        statistics: of the global batch; None: this batch is all of it, or the loss needs none.
        zero: what is added to the hidden states, to reach all trained parameters; None: nothing.
    """

    settings: PreferenceSettings
    head: Head
    num_tokens: int | None
    chunk_bytes: int
    statistics: BatchStatistics | None = None
    zero: Tensor | None = None


def statistics_of(
    ratios_G2: Tensor, settings: PreferenceSettings, add: Callable[[list[float]], list[float]]
) -> BatchStatistics:
    """The statistics of the global batch.

    Args:
        ratios_G2: c and r of all pairs of this rank.
        add: sums numbers over all ranks.
    """
    count, *sums = add([float(len(ratios_G2)), *ratios_G2.double().sum(0).tolist()])
    above = [total / max(1.0, count) for total in sums]
    found = BatchStatistics(chosen=max(0.0, above[0]), rejected=max(0.0, above[1]))
    if not settings.means_have_gradient:
        return found

    def loss_of(means_2: Tensor) -> Tensor:
        means = BatchMeans(chosen=means_2[0], rejected=means_2[1])
        return settings.of_ratios(ratios_G2, means).total

    means = found.means_for(ratios_G2)
    (slopes_2,) = gradients_of(loss_of, [torch.stack([means.chosen, means.rejected])])
    # a mean below 0 is cut off; each pair is one of `count` in it
    chosen, rejected = (
        slope / max(1.0, count) if mean >= 0 else 0.0 for slope, mean in zip(add(slopes_2.tolist()), above, strict=True)
    )
    return replace(found, chosen_slope=chosen, rejected_slope=rejected)


class MarginSums:
    """Margins of the pairs of one step or validation; totals stay on the device."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._count = 0

    def add(self, ratios_G2: Tensor | None) -> None:
        """Count the pairs of a batch; None: the batch computes no loss on pairs."""
        if ratios_G2 is not None:
            margins_G = ratios_G2[:, 0] - ratios_G2[:, 1]
            self._sums.append(torch.stack([margins_G.sum(), (margins_G > 0).sum().to(margins_G.dtype)]))
            self._count += len(margins_G)

    def totals(self) -> list[float]:
        """Sum of the margins, pairs with a margin above 0, and pairs: to be added over all ranks."""
        sums: list[float] = torch.stack(self._sums).sum(0).tolist() if self._sums else [0.0, 0.0]
        return [*sums, float(self._count)]

    @staticmethod
    def means(totals: Sequence[float]) -> tuple[float, float] | None:
        """`output.PREFERENCE_FIGURES` of the added totals; None without pairs."""
        margin, above, count = totals
        return (margin / count, above / count) if count else None
