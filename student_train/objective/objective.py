"""All terms of eq. 7 from ONE forward pass of the student.

Shape letters as in `alignkd.student_train.data.batch`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.stem_targets import StemTargets
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.head_terms import head_terms
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import ForwardPass
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM


class DistilledStudent(nn.Module):
    """Student and adapters: the module that DeepSpeed trains.

    EVERY batch runs through every trained parameter in the same order, with zeros if it has no image. ZeRO-2 packs
    gradients into its reduction buckets in the order of arrival. If a rank with a text-only batch left the projector
    out, its gradients would be added to those of other parameters on the other ranks.
    """

    teacher_lm_head_VD: Tensor | None

    def __init__(
        self,
        model: MobileVLM,
        adapters: Adapters,
        losses: LossConfig,
        teacher_lm_head_VD: Tensor | None = None,
        stem: StemTargets | None = None,
    ) -> None:
        """Freeze what is not trained.

        Args:
            model: the student.
            adapters: the trained projections of the teacher's targets.
            losses: weights and settings of the terms.
            teacher_lm_head_VD: [V, Dt], needed if the store keeps the teacher's hidden states; frozen.
            stem: computes the targets that are not stored; frozen.
        """
        super().__init__()
        self.register_buffer("teacher_lm_head_VD", teacher_lm_head_VD, persistent=False)  # frozen, in its own dtype
        self.model, self.adapters, self.losses, self.stem = model, adapters, losses, stem
        model.requires_grad_(True)
        model.freeze_vision_tower()
        # An adapter without a weighted term is not changed, not even by weight decay.
        trained = {TERMS[name].adapter for name in losses.weights}
        adapters.attn_adapter.requires_grad_("attn_adapter" in trained)
        adapters.proj_adapter.requires_grad_("proj_adapter" in trained)

    def forward(self, batch: TrainBatch) -> dict[str, LossSum]:
        """Every term with a weight above 0; its count is 0 if the batch lacks its target."""
        pixels = batch.sequences.pixel_values_ICHW
        if pixels is None:
            vision_IPD = self._no_vision()
        else:
            features_IND = self.model.model.vision_tower(pixels)
            vision_IPD = self.model.model.mm_projector(features_IND)
            if self.stem is not None:
                batch = self.stem.fill(batch, features_IND)  # before the decoder allocates its activations
        embeds_BLD = self.model.embed(batch.sequences, None if pixels is None else vision_IPD)
        if pixels is None:
            embeds_BLD = embeds_BLD + 0.0 * vision_IPD.sum()

        with self.model.watched_first_layer() as first_layer:
            hidden_BLD = self.model.hidden_states(embeds_BLD)
        forward = ForwardPass(
            batch=batch,
            adapters=self.adapters,
            vision_IPD=vision_IPD,
            hidden_BLD=hidden_BLD,
            first_layer=first_layer,
            attention_chunk_bytes=self.losses.attention_chunk_mib << 20,
        )
        # The terms on logits come first, whatever their place in the table. And all terms come after the decoder:
        # backward then finishes layer 0's weights at the same moment with and without the attention term.
        return self._terms_on_logits(forward) | self._other_terms(forward)

    def _terms_on_logits(self, forward: ForwardPass) -> dict[str, LossSum]:
        """The student's logits are never held all at once."""
        batch, weights = forward.batch, self.losses.weights
        hidden_ND = forward.hidden_BLD.flatten(0, 1)[batch.supervised_N]
        inputs = self.losses.head_inputs(batch.labels_N, batch.logits, self.teacher_lm_head_VD)
        totals = fused_head_losses(
            hidden_ND,
            self.model.lm_head.weight,
            # all have the same count, so their weights relative to each other are those in the total
            head_terms(inputs, weights),
            chunk_bytes=self.losses.head_chunk_mib << 20,
        )
        names = [name for name in weights if TERMS[name].on_logits is not None]
        return {name: LossSum(total, len(hidden_ND)) for name, total in zip(names, totals, strict=True)}

    def _other_terms(self, forward: ForwardPass) -> dict[str, LossSum]:
        computed = {name: TERMS[name].compute for name in self.losses.weights}
        return {name: compute(forward) for name, compute in computed.items() if compute is not None}

    def _no_vision(self) -> Tensor:
        """The projector's output for tower features of zeros: gives its parameters a gradient of zeros."""
        config, projector = self.model.config, self.model.model.mm_projector
        shape = (1, config.vision_tokens, config.vision.hidden_size)
        vision_1PD: Tensor = projector(next(projector.parameters()).new_zeros(shape))
        return vision_1PD


def weighted_total(
    terms: Mapping[str, LossSum], weights: Mapping[str, float], global_counts: Mapping[str, int]
) -> Tensor:
    """This micro-batch's share of eq. 7; the sum over all micro-batches and ranks is the loss of the global batch."""
    parts = [weights[name] * term.total / max(global_counts[name], 1) for name, term in terms.items()]
    return torch.stack(parts).sum()
