"""The form of a loss term, and what the forward pass provides for it. The terms are listed in `terms.py`.

Shape letters: P vision tokens of all images of the batch, Ds the student's hidden size, B samples, L positions, N
supervised positions of the whole batch, V vocabulary, Dt the teacher's hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.targets import LogitTargets
from alignkd.student_train.losses.fused_head import HeadTerm
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.attention.match import AttentionMatch, FixedHeads
from alignkd.student_train.objective.attention.row_reference import RowReferences
from alignkd.student_train.objective.centres import Centres
from alignkd.student_train.objective.preference.settings import PreferenceInputs
from alignkd.student_train.objective.vision.pairs import VisionPairs
from alignkd.student_train.objective.vision.settings import VisionSettings
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Head, ModelConfig
from alignkd.vlm.hardware.transfers import to_device

Preset = Literal[
    "paper", "supervised", "taid", "llava_kd", "compodistill", "llava_mod", "llava_mod_preference", "em_kd", "mcd"
]
Target = Literal[
    "attention",
    "vision_top",
    "vision_all",
    "logits",
    "vision_states",
    "vision_relations",
    "state_norms",
    "vision_text_affinity",
    "counterfactual",
    "preference",
]


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What terms on logits at other positions than the supervised ones need.

    Attributes:
        student: the student's head.
        teacher: the teacher's, which makes logits of its stored states; None if no term needs it.
        num_tokens: see `HeadInputs`.
        chunk_bytes: see `fused_head_losses`.
    """

    student: Head
    teacher: Head | None
    num_tokens: int | None
    chunk_bytes: int


@dataclass(frozen=True, kw_only=True)
class SecondPasses:
    """Further forward passes of the student over the samples with images, with vision tokens replaced.

    Attributes:
        head: the student's head.
        num_tokens: see `HeadInputs`.
        chunk_bytes: see `fused_head_losses`.
        factor: by which a term is multiplied: 2 if one of two was drawn.
        states_MD: hidden states at the M supervised positions of `CounterfactualTargets`, by term; a term that was not
            drawn has none.
    """

    head: Head
    num_tokens: int | None
    chunk_bytes: int
    factor: float = 1.0
    states_MD: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """One forward pass of the student over a micro-batch.

    Attributes:
        batch: inputs and targets, all on the student's device.
        adapters: the trained projections of the teacher's targets.
        vision_PD: the student's vision embeddings [P, Ds], image by image; of one image of zeros where the batch has
            no image.
        hidden_BLD: the student's hidden states [B, L, Ds] after its final norm.
        layers: queries and keys of the decoder's layers whose attention is compared, by their numbers.
        attention: how it is compared.
        attention_chunk_bytes: largest size of one float32 copy of the attention rows that are computed at a time.
        fixed_heads: the mixture of the teacher's heads where no adapter is trained.
        references: of the weights of attention rows; None: all rows count alike.
        preference: what the term on pairs of answers needs; None if it has no weight.
        second: what the terms on counterfactual targets need; None if no such term has a weight.
        heads: both output heads.
        vision: settings of the terms on states.
        vision_pairs: the vision tokens that `vsd` and `vlad` compare; None: those of the same places.
        after_layers: the student's hidden states [B, L, Ds] after decoder layers that a term compares, by number.
        centres: of the loss `nd`; None if it has no weight.
    """

    batch: TrainBatch
    adapters: Adapters
    vision_PD: Tensor
    hidden_BLD: Tensor
    layers: Mapping[int, AttentionLayer]
    attention: AttentionMatch
    attention_chunk_bytes: int
    fixed_heads: FixedHeads | None = None
    references: RowReferences | None = None
    second: SecondPasses | None = None
    preference: PreferenceInputs | None = None
    heads: Heads | None = None
    vision: VisionSettings | None = None
    vision_pairs: VisionPairs | None = None
    after_layers: Mapping[int, Tensor] = field(default_factory=dict)
    centres: Centres | None = None

    @property
    def num_samples(self) -> int:
        """B."""
        return len(self.hidden_BLD)

    @property
    def samples_P(self) -> Tensor:
        """int64 [P], the sample of each vision token; of a batch with images."""
        tokens_B = self.batch.sequences.vision_mask_BL.sum(1)
        rows_B = torch.arange(self.num_samples, device=tokens_B.device)
        # with its size given it need not wait for the device
        return rows_B.repeat_interleave(tokens_B, output_size=len(self.vision_PD))

    @property
    def samples_I(self) -> Tensor:
        """int64 [I], the sample of each image, on the device."""
        return to_device(self.batch.sequences.image_samples_I, self.hidden_BLD.device)

    @property
    def samples_N(self) -> Tensor:
        """int64 [N], the sample of each supervised position."""
        return self.batch.supervised_N // self.hidden_BLD.shape[1]


@dataclass(frozen=True, kw_only=True)
class HeadInputs:
    """What terms on the student's logits need in addition to the logits.

    Attributes:
        labels_N: int64, the token that follows each supervised position.
        targets: the teacher's distributions at these positions; None if no term needs them.
        teacher_head: the teacher's output head; only `HiddenTargets` need it.
        num_tokens: the logit loss compares the first `num_tokens` columns, where the vocabularies of student and
            teacher are padded beyond the tokenizer's entries; None: all columns.
        divergence, temperature: settings of the logit loss.
        step_values: numbers that change from step to step and that the divergence reads by name.
        groups: sizes of the groups of positions that the divergence compares with one another; see `FullRows`.
        kept_N: bool, positions at which the terms have elements; None: everywhere.
        label_factors_N: float32, multiplies the cross-entropy at each position; None: 1 everywhere.
        logit_factors_N: float32, multiplies the logit loss at each position; None: 1 everywhere.
    """

    labels_N: Tensor
    targets: LogitTargets | None
    teacher_head: Head | None
    num_tokens: int | None
    divergence: RowDivergence
    temperature: float
    step_values: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[int, ...] = ()
    label_factors_N: Tensor | None = None
    logit_factors_N: Tensor | None = None
    kept_N: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss term. Exactly one of `compute` and `on_logits` is given.

    Attributes:
        meaning: the line about its weight in docs/configuration.md.
        weight: default weight.
        presets: the presets that give the term its default weight; the others give it 0, or their own (`presets.py`).
        target: the stored target that it compares with; None if it needs no teacher.
        positional: it compares vision tokens one by one, so teacher and student must make equally many of an image
            (`vsd` and `vlad` unless `vision_matching` pairs them).
        teacher_head: it makes logits of the teacher's stored states with the teacher's head.
        adapter: the adapter that it trains; an adapter without a weighted term stays as it is.
        compute: the term as a sum over the micro-batch, in parts by sample (`LossSum.by_sample`). If the batch lacks
            its target the count is 0, and the sum must still depend on every parameter that the term trains (`idle`).
        elements: how many elements each sample of a store contributes to `compute`, int64 [samples], for a student of
            these shapes, with the attention compared in this way. The total is divided by their sum over the global
            batch.
        on_logits: for a sum over supervised positions that needs the student's logits: gives the function that is
            called with one chunk of positions at a time and returns the value at each [n]. Rejected answers of
            preference pairs are left out of the sum and of its count.
    """

    meaning: str
    weight: float
    presets: tuple[Preset, ...] = ()
    target: Target | None = None
    positional: bool = False
    teacher_head: bool = False
    adapter: Literal["attn_adapter", "proj_adapter", "state_adapter"] | None = None
    compute: Callable[[ForwardPass], LossSum] | None = None
    elements: Callable[[StoreReader, ModelConfig, AttentionMatch], NDArray[np.int64]] | None = None
    on_logits: Callable[[HeadInputs], HeadTerm] | None = None

    def __post_init__(self) -> None:
        assert (self.compute is None) != (self.on_logits is None), self
        assert (self.compute is None) == (self.elements is None), self  # on_logits: the supervised positions


def idle(output: Tensor, forward: ForwardPass) -> LossSum:
    """A term without elements that gives the parameters behind `output` a gradient of zeros."""
    total = 0.0 * output.float().sum()
    return LossSum(total, 0, total.new_zeros(forward.num_samples))
