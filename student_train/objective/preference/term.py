"""The term `preference`: a loss on the log-probabilities of whole answers, with the teacher's as the reference.

It is not a sum over positions, so its gradient at a position is known only when all positions of the answer are. The
head is computed twice: first without gradient, which gives the log-probability s of each answer, and then fused, where
each position has the weight d loss / d s of its answer. So no [N, V] tensor exists, and the gradient is the exact one.

Shapes: G pairs of the batch, M supervised positions of their answers, D the student's hidden size, V vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.targets import PreferenceTargets
from alignkd.student_train.losses.fused_head import HeadTerm, WeightedTerm, fused_head_losses
from alignkd.student_train.losses.inner_autograd import gradients_of
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.preference import BatchMeans
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.preference.settings import PreferenceInputs
from alignkd.student_train.objective.term import ForwardPass
from alignkd.vlm.families.family import ModelConfig


def preference_term(forward: ForwardPass) -> LossSum:
    """The sum over the pairs of the batch; its parts are the samples with the chosen answers."""
    targets, inputs = forward.batch.preference, forward.preference
    assert targets is not None and inputs is not None
    states_MD = forward.hidden_BLD.flatten(0, 1)[forward.batch.supervised_N[targets.places_M]]
    if inputs.zero is not None:
        states_MD = states_MD + inputs.zero.to(states_MD.dtype)
    term = _label_logprobs(forward.batch.labels_N[targets.places_M], inputs.num_tokens)
    ratios_G2 = _log_ratios(states_MD, targets, inputs, term)
    loss = inputs.settings.of_ratios(ratios_G2, _means(inputs, ratios_G2))
    total = loss.total.to(torch.float64 if states_MD.dtype == torch.float64 else torch.float32)
    if torch.is_grad_enabled():
        slopes_M = _slopes(ratios_G2, inputs)[targets.answers_M]
        linear = _fused(states_MD, inputs, lambda logits, chunk: slopes_M[chunk].to(logits.dtype) * term(logits, chunk))
        # the value of the loss with the gradient of its linear form
        total = total + (linear.total - linear.total.detach())
    by_sample = total.new_zeros(forward.num_samples).index_add_(0, targets.chosen_G, loss.parts.to(total.dtype))
    return LossSum(total, len(ratios_G2), by_sample, ratios_G2=ratios_G2)


def preference_elements(reader: StoreReader, student: ModelConfig, attention: AttentionMatch) -> NDArray[np.int64]:
    """1 for the chosen record of each whole pair."""
    return Pairs.of(reader).first.astype(np.int64)


def _label_logprobs(labels_M: Tensor, num_tokens: int | None) -> HeadTerm:
    """log p(label) at the positions of a chunk [n]."""
    return lambda logits_nV, chunk: -supervised_loss(logits_nV[:, :num_tokens], labels_M[chunk]).parts


def _log_ratios(states_MD: Tensor, targets: PreferenceTargets, inputs: PreferenceInputs, term: HeadTerm) -> Tensor:
    """c and r of each pair, float64 [G, 2], without gradient."""
    with torch.no_grad():
        logprobs_M = _fused(states_MD.detach(), inputs, term).parts.double()
        sums = logprobs_M.new_zeros(targets.reference_G2.numel()).index_add_(0, targets.answers_M, logprobs_M)
        ratios_G2: Tensor = sums.unflatten(0, (-1, 2)) - targets.reference_G2.double()
        return ratios_G2


def _means(inputs: PreferenceInputs, ratios_G2: Tensor) -> BatchMeans | None:
    """The means of `kto_pair`; those of these pairs have a gradient if the settings say so. None: without gradient."""
    if inputs.statistics is not None:
        return inputs.statistics.means_for(ratios_G2)
    if inputs.settings.needs_statistics and inputs.settings.means_have_gradient:
        return BatchMeans.of(ratios_G2[:, 0], ratios_G2[:, 1])
    return None


def _slopes(ratios_G2: Tensor, inputs: PreferenceInputs) -> Tensor:
    """Derivative of the loss along the log-probability of each answer, float64 [2G]."""

    def loss_of(leaf_G2: Tensor) -> Tensor:
        return inputs.settings.of_ratios(leaf_G2, _means(inputs, leaf_G2)).total

    (slopes_G2,) = gradients_of(loss_of, [ratios_G2])
    if (found := inputs.statistics) is not None:
        slopes_G2[:, 0] += found.chosen_slope
        slopes_G2[:, 1] += found.rejected_slope
    return slopes_G2.flatten()


def _fused(states_MD: Tensor, inputs: PreferenceInputs, term: HeadTerm) -> LossSum:
    (found,) = fused_head_losses(
        states_MD, inputs.head, [WeightedTerm(term=term, weight=1.0)], chunk_bytes=inputs.chunk_bytes
    )
    return found
