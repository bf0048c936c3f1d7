"""All terms of eq. 7 from ONE forward pass of the student.

Shape letters as in `alignkd.student_train.data.batch`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from alignkd.student_train.config import LossConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.stem_targets import StemTargets
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.vision import vision_all_loss, vision_focus_loss
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention_term import attention_term
from alignkd.student_train.objective.head_terms import HEAD_TERMS, head_terms
from alignkd.vlm.model.attention import FirstLayer
from alignkd.vlm.model.mobilevlm import MobileVLM


class DistilledStudent(nn.Module):
    """Student and adapters: the module that DeepSpeed trains.

    EVERY batch runs through every trained parameter in the same order, with zeros where it has no image: ZeRO-2
    packs gradients into its reduction buckets in the order of arrival, so a rank whose text-only batch left the
    projector out would have its gradients added to other parameters' of the other ranks.
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
        """What is frozen beside the student.

        Args:
            teacher_lm_head_VD: [V, Dt], needed where the store keeps the teacher's hidden states.
            stem: gives the targets that are not stored.
        """
        super().__init__()
        self.register_buffer("teacher_lm_head_VD", teacher_lm_head_VD, persistent=False)  # frozen, in its own dtype
        self.model, self.adapters, self.losses, self.stem = model, adapters, losses, stem
        model.requires_grad_(True)
        model.freeze_vision_tower()
        # An adapter without a loss stays as it is, weight decay included.
        adapters.attn_adapter.requires_grad_(losses.attention > 0)
        adapters.proj_adapter.requires_grad_(losses.vision_all > 0 or losses.vision_focus > 0)

    def forward(self, batch: TrainBatch) -> dict[str, LossSum]:
        """Every term with a weight above 0; count 0 where the batch lacks its targets."""
        sequences, weights = batch.sequences, self.losses.weights
        pixels = sequences.pixel_values_ICHW
        if pixels is None:
            vision_IPD = self._no_vision()
        else:
            features_IND = self.model.model.vision_tower(pixels)
            vision_IPD = self.model.model.mm_projector(features_IND)
            if self.stem is not None:
                batch = self.stem.fill(batch, features_IND)  # before the decoder, whose activations are not there yet
        embeds_BLD = self.model.embed(sequences, None if pixels is None else vision_IPD)
        if pixels is None:
            embeds_BLD = embeds_BLD + 0.0 * vision_IPD.sum()

        with self.model.watched_first_layer() as first_layer:
            hidden_BLD = self.model.hidden_states(embeds_BLD)
        terms = self._next_token_terms(batch, hidden_BLD.flatten(0, 1)[batch.supervised_N])
        # After the decoder: backward then finishes layer 0's weights at the same moment with and without this term.
        if "attention" in weights:
            terms["attention"] = self._attention(batch, first_layer)
        if "vision_all" in weights:
            terms["vision_all"] = self._vision_all(batch, vision_IPD)
        if "vision_focus" in weights:
            terms["vision_focus"] = self._vision_focus(batch, vision_IPD)
        return terms

    def _next_token_terms(self, batch: TrainBatch, hidden_ND: Tensor) -> dict[str, LossSum]:
        """The terms on the student's logits, which are never held all at once."""
        totals = fused_head_losses(
            hidden_ND,
            self.model.lm_head.weight,
            # all have the same count, so their weights against each other are those in the total
            head_terms(batch.labels_N, batch.logits, self.teacher_lm_head_VD, self.losses),
            chunk_bytes=self.losses.head_chunk_mib << 20,
        )
        names = [name for name in HEAD_TERMS if name in self.losses.weights]
        return {name: LossSum(total, len(hidden_ND)) for name, total in zip(names, totals, strict=True)}

    def _attention(self, batch: TrainBatch, first_layer: FirstLayer) -> LossSum:
        targets = batch.attention
        if targets is None:
            conv = self.adapters.attn_adapter
            return _idle(self.adapters.adapt_attention(_zeros_like(conv.weight, (1, conv.in_channels, 1, 1))))
        query_BHRd, key_BHLd = first_layer.rotated(targets.rows_BR, targets.samples_B)
        return attention_term(
            self.adapters,
            targets,
            query_BHRd,
            key_BHLd,
            scaling=first_layer.scaling,
            chunk_bytes=self.losses.attention_chunk_mib << 20,
        )

    def _vision_all(self, batch: TrainBatch, vision_IPD: Tensor) -> LossSum:
        if batch.vision_all_IPD is None:
            return _idle(self.adapters.adapt_vision(self._no_teacher_vision()))
        return vision_all_loss(self.adapters.adapt_vision(batch.vision_all_IPD.decode()), vision_IPD)

    def _vision_focus(self, batch: TrainBatch, vision_IPD: Tensor) -> LossSum:
        if batch.top_embeddings_IKD is None or batch.top_index_IK is None:
            return _idle(self.adapters.adapt_vision(self._no_teacher_vision()))
        adapted_IKD = self.adapters.adapt_vision(batch.top_embeddings_IKD.decode())
        if batch.first_image_S is None:
            return vision_focus_loss(adapted_IKD, vision_IPD, batch.top_index_IK)
        index_IK = batch.top_index_IK + vision_IPD.shape[1] * batch.first_image_S[:, None]  # through the whole batch
        return vision_focus_loss(
            adapted_IKD.flatten(0, 1)[None], vision_IPD.flatten(0, 1)[None], index_IK.flatten()[None]
        )

    def _no_vision(self) -> Tensor:
        """The projector's output for tower features of zeros: gives its parameters a gradient of zeros."""
        config, projector = self.model.config, self.model.model.mm_projector
        shape = (1, config.vision_tokens, config.vision.hidden_size)
        vision_1PD: Tensor = projector(_zeros_like(next(projector.parameters()), shape))
        return vision_1PD

    def _no_teacher_vision(self) -> Tensor:
        conv = self.adapters.proj_adapter
        return _zeros_like(conv.weight, (1, 1, conv.in_channels))


def weighted_total(
    terms: Mapping[str, LossSum], weights: Mapping[str, float], global_counts: Mapping[str, int]
) -> Tensor:
    """This micro-batch's share of eq. 7: summed over all micro-batches of all ranks it is the global batch's loss."""
    parts = [weights[name] * term.total / max(global_counts[name], 1) for name, term in terms.items()]
    return torch.stack(parts).sum()


def _zeros_like(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=weight.dtype, device=weight.device)


def _idle(output: Tensor) -> LossSum:
    """A term without elements that still reaches the parameters behind `output`."""
    return LossSum(0.0 * output.float().sum(), 0)
