"""All terms of eq. 7 from ONE forward pass of the student.

Shape letters as in `alignkd.student_train.data.batch`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.stem_targets import StemTargets
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.logits.advantage_groups import group_factors
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention.match import AttentionMatch, FixedHeads, first_layers
from alignkd.student_train.objective.attention.row_reference import RowReferences
from alignkd.student_train.objective.centres import Centres
from alignkd.student_train.objective.counterfactual_terms import EFFECT, KEEP, drawn_terms, second_states
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.preference.settings import (
    PREFERENCE,
    BatchStatistics,
    PreferenceInputs,
    PreferenceSettings,
)
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import ForwardPass, Heads, SecondPasses
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.objective.vision.pairs import TokensOfImages, VisionPairs, match_vision_tokens
from alignkd.student_train.trained.selection import select_trained
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.vlm.families.family import Head, Vision, VisionLanguageModel, sum_of_zeros
from alignkd.vlm.families.recorded_states import recorded_states
from alignkd.vlm.inputs.batch import SequenceBatch


class DistilledStudent(nn.Module):
    """Student and adapters: the module that an engine trains.

    EVERY batch runs through every trained parameter in the same order, with zeros if it has no image. ZeRO-2 packs
    gradients into its reduction buckets in the order of arrival. If a rank with a text-only batch left the projector
    out, its gradients would be added to those of other parameters on the other ranks.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        adapters: Adapters,
        losses: LossConfig,
        teacher_head: Head | None = None,
        stem: StemTargets | None = None,
        num_tokens: int | None = None,
        trained: TrainedConfig | None = None,
        attention: AttentionMatch | None = None,
        fixed_heads: FixedHeads | None = None,
        frozen_adapters: bool = False,
        preference: PreferenceSettings | None = None,
        centres: Centres | None = None,
    ) -> None:
        """Freeze what is not trained.

        Args:
            model: the student.
            adapters: the trained projections of the teacher's targets.
            losses: weights and settings of the terms.
            teacher_head: needed if the store keeps the teacher's hidden states; frozen.
            stem: computes the targets that are not stored; frozen.
            num_tokens: see `HeadInputs`.
            trained: what is trained of the model; None: everything but its vision tower.
            attention: how attention is compared; None: that of the first layers.
            fixed_heads: mixture of the teacher's heads, unless it is trained.
            frozen_adapters: whether adapters stay as they are.
            preference: the loss on pairs of answers; None: there is none.
            centres: the teacher's class means, needed by the loss `nd`; frozen.
        """
        super().__init__()
        self.model, self.adapters, self.losses, self.stem = model, adapters, losses, stem
        self.teacher_head = None if teacher_head is None else FrozenHead(teacher_head)
        self.num_tokens, self.centres = num_tokens, centres
        self._drawn: tuple[str, ...] | None = None
        self.attention = attention or first_layers(model.config)
        self.fixed_heads = fixed_heads
        self.preference = preference
        # of the global batch of a step, for losses on pairs that need them
        self.statistics: BatchStatistics | None = None
        # numbers that the divergence of the logit loss reads by name, set before each step; the same on every rank
        self.step_values: Mapping[str, float] = losses.first_step_values
        # positions of the high and of the low group of the logit loss in the global batch, set before each step
        self.group_sizes: tuple[int, int] | None = None
        # of the weights of attention rows; they are measured when the student is on its device
        self.references: RowReferences | None = None
        select_trained(model, trained or TrainedConfig())
        # An adapter without a weighted term is not changed, not even by weight decay.
        used = {TERMS[name].adapter for name in losses.weights}
        if frozen_adapters:
            used.clear()
        for adapter in adapters.of_layers:
            adapter.requires_grad_("attn_adapter" in used and losses.attention_heads == "adapter")
        adapters.proj_adapter.requires_grad_("proj_adapter" in used)
        if adapters.state_adapter is not None:
            adapters.state_adapter.requires_grad_("state_adapter" in used)

    def start_step(self, step: int, *, seed: int) -> None:
        """Draw what the training step of this number computes, the same on every rank."""
        self._drawn = drawn_terms(self.losses.weights, seed=seed, step=step)

    def forward(self, batch: TrainBatch) -> dict[str, LossSum]:
        """Every term with a weight above 0, in parts by sample; its count is 0 if the batch lacks its target."""
        vision = self._vision(batch.sequences)
        if self.stem is not None and vision.features is not None:
            batch = self.stem.fill(batch, vision.features)  # before the decoder allocates its activations
            vision = replace(vision, features=None)
        has_image = bool(batch.sequences.images)
        watched = self.attention.student_layers if "attention" in self.losses.weights else ()
        recorded = self.losses.recorded_layers
        with self.model.watched_layers(watched) as layers, recorded_states(self.model, recorded) as after_layers:
            hidden_BLD = self.model.hidden_states(batch.sequences, vision if has_image else None)
        heads = self._heads()
        forward = ForwardPass(
            batch=batch,
            adapters=self.adapters,
            vision_PD=vision.embeddings_PD,
            hidden_BLD=hidden_BLD,
            layers=layers,
            attention=self.attention,
            attention_chunk_bytes=self.losses.attention_chunk_bytes(hidden_BLD.device.type),
            second=self._second_passes(batch, vision),
            preference=self._preference_inputs(None if has_image else sum_of_zeros(vision)),
            fixed_heads=self.fixed_heads,
            references=self.references,
            vision_pairs=self._vision_pairs(batch, hidden_BLD, heads),
            heads=heads,
            vision=self.losses.vision_settings,
            after_layers=after_layers,
            centres=self.centres,
        )
        # The terms on logits come first, whatever their place in the table. And all terms come after the decoder:
        # backward then finishes a layer's weights at the same moment with and without the attention term.
        on_logits = self._terms_on_logits(forward, None if has_image else sum_of_zeros(vision))
        return on_logits | self._other_terms(forward)

    def _vision(self, sequences: SequenceBatch) -> Vision:
        """The encoded images; of an image of zeros where there is none.

        They are encoded before the decoder runs, also the image of zeros: backward reaches them after it.
        """
        if not sequences.images:
            return self.model.no_image()
        samples = sequences.image_samples_I.tolist()  # on the host
        return self.model.encode_images(sequences.images, samples, features=self.stem is not None)

    def _preference_inputs(self, zero: Tensor | None) -> PreferenceInputs | None:
        """What the term `preference` needs; None if it has no weight. `zero` is added to its hidden states."""
        if PREFERENCE not in self.losses.weights:
            return None
        assert self.preference is not None  # `TrainConfig`
        return PreferenceInputs(
            settings=self.preference,
            head=self.model.head,
            num_tokens=self.num_tokens,
            chunk_bytes=self.losses.head_chunk_mib << 20,
            statistics=self.statistics,
            zero=zero,
        )

    def _heads(self) -> Heads:
        return Heads(
            student=self.model.head,
            teacher=None if self.teacher_head is None else self.teacher_head.head,
            num_tokens=self.num_tokens,
            chunk_bytes=self.losses.head_chunk_mib << 20,
        )

    def _vision_pairs(self, batch: TrainBatch, hidden_BLD: Tensor, heads: Heads) -> VisionPairs | None:
        """The vision tokens that are compared; None: those of the same places, or none."""
        targets = batch.vision_states_PD
        if self.losses.vision_matching == "place" or targets is None:
            return None
        assert heads.teacher is not None  # `LossConfig.needs_teacher_head`
        return match_vision_tokens(
            hidden_BLD.detach().flatten(0, 1)[batch.sequences.vision_places_P],
            heads.student,
            targets.decode().to(heads.teacher.weight_VD.dtype),
            heads.teacher,
            TokensOfImages.of(batch.sequences, batch.teacher_tokens_of_image),
            num_tokens=heads.num_tokens,
            chunk_bytes=heads.chunk_bytes,
        )

    def _second_passes(self, batch: TrainBatch, vision: Vision) -> SecondPasses | None:
        """The further passes of the terms `effect` and `keep`; None if neither has a weight."""
        weighted = [name for name in (EFFECT, KEEP) if name in self.losses.weights]
        if not weighted:
            return None
        drawn = self._drawn if self.training and self._drawn is not None else tuple(weighted)
        return SecondPasses(
            head=self.model.head,
            num_tokens=self.num_tokens,
            chunk_bytes=self.losses.head_chunk_mib << 20,
            factor=len(weighted) / len(drawn),
            states_MD=second_states(self.model, batch, vision, drawn),
        )

    def _terms_on_logits(self, forward: ForwardPass, zero: Tensor | None) -> dict[str, LossSum]:
        """The student's logits are never held all at once; `zero` is added to their hidden states."""
        batch, weights = forward.batch, self.losses.weights
        names = [name for name in weights if TERMS[name].on_logits is not None]
        if not names:
            return {}
        hidden_ND = forward.hidden_BLD.flatten(0, 1)[batch.supervised_N]
        if zero is not None:
            hidden_ND = hidden_ND + zero.to(hidden_ND.dtype)
        teacher_head = None if self.teacher_head is None else self.teacher_head.head
        inputs = self.losses.head_inputs(
            batch.labels_N,
            batch.logits,
            teacher_head,
            num_tokens=self.num_tokens,
            generated_N=batch.generated_N,
            rejected_N=batch.rejected_N,
            logit_factors_N=self._logit_factors(batch),
            step_values=self.step_values,
            positions_of_sample=batch.positions_of_sample,
        )
        losses = fused_head_losses(
            hidden_ND,
            self.model.head,
            # all have the same count, so their weights relative to each other are those in the total
            head_terms(inputs, weights),
            chunk_bytes=self.losses.head_chunk_mib << 20,
            groups=inputs.groups,
        )
        samples_N, num_samples = forward.samples_N, forward.num_samples
        found = dict(zip(names, losses, strict=False))
        if further := losses[len(names) :]:
            figures = zip(inputs.divergence.figures, further, strict=True)
            found["logit"] = replace(found["logit"], figures={name: figure.parts for name, figure in figures})
        return {
            # all have the same count, as their weights relative to each other are already applied
            name: replace(loss, count=loss.count - batch.num_rejected).by_sample(samples_N, num_samples)
            for name, loss in found.items()
        }

    def _logit_factors(self, batch: TrainBatch) -> Tensor | None:
        """What gives each group of positions a mean of its own; None: one mean over all positions."""
        if self.losses.high_share is None or batch.high_N is None:
            return None
        assert self.group_sizes is not None, "set before each step"
        return group_factors(batch.high_N, *self.group_sizes, dtype=torch.float32)

    def _other_terms(self, forward: ForwardPass) -> dict[str, LossSum]:
        computed = {name: TERMS[name].compute for name in self.losses.weights}
        return {name: compute(forward) for name, compute in computed.items() if compute is not None}


class FrozenHead(nn.Module):
    """The teacher's output head as buffers: moved with the student, but neither trained nor kept in checkpoints."""

    weight_VD: Tensor
    bias_V: Tensor | None

    def __init__(self, head: Head) -> None:
        super().__init__()
        self._head = head
        for name in ("weight_VD", "bias_V"):  # in their own dtype
            self.register_buffer(name, getattr(head, name), persistent=False)

    @property
    def head(self) -> Head:
        """The head on the module's device."""
        return replace(self._head, weight_VD=self.weight_VD, bias_V=self.bias_V)


def weighted_total(
    terms: Mapping[str, LossSum], weights: Mapping[str, float], global_counts: Mapping[str, int]
) -> Tensor:
    """This micro-batch's share of eq. 7; the sum over all micro-batches and ranks is the loss of the global batch."""
    parts = [weights[name] * term.total / max(global_counts[name], 1) for name, term in terms.items()]
    return torch.stack(parts).sum()
