"""Settings of the loss terms; their weights are keys made from the table `alignkd.student_train.objective.terms`."""

import math
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, create_model, model_validator
from torch import Tensor

from alignkd.student_train.data.targets import LogitTargets
from alignkd.student_train.losses.attention.row_weights import RowWeights
from alignkd.student_train.losses.logits.divergences import (
    MIXED,
    PLAIN,
    SUPPORT,
    Divergence,
    LogitDivergence,
    named_divergence,
)
from alignkd.student_train.objective.attention.layer_map import LayerMap
from alignkd.student_train.objective.attention.match import AttentionForm, AttentionHeads
from alignkd.student_train.objective.counterfactual_terms import KEEP
from alignkd.student_train.objective.preference.settings import PREFERENCE
from alignkd.student_train.objective.term import HeadInputs, Target
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.families.family import Head
from alignkd.vlm.settings import Amount, Count, Positive, Settings

if TYPE_CHECKING:
    _Weights = Settings
else:
    _Weights = create_model(
        "_Weights",
        __base__=Settings,
        **{name: (Amount, Field(default=term.weight, description=term.meaning)) for name, term in TERMS.items()},
    )


class LossConfig(_Weights):
    """Weight of each term of eq. 7; a term of weight 0 is not computed. Defaults are the paper's.

    Attributes:
        supervised_on_generated: factor of the cross-entropy at the tokens of answers that a model wrote (turns with
            `generated`, as `alignkd generate` marks them); 0 trains on none of them. The term is the mean of factor
            times cross-entropy over all supervised positions. Validation reports plain cross-entropy.
        logit_divergence: divergence of the logit loss; formulas in `losses/logits/divergences.py`. Those on the support
            compare the tokens that a `topk` or `nucleus` store keeps, renormalised on both sides: all that a store with
            an unknown tail allows.
        logit_mixture: share of the teacher in the mixture of `js` and `support_js` (default 0.5); share of the
            distribution that comes first in the divergence for `skewed_reverse_kl` and `skewed_forward_kl` (default
            0.1). The plain divergences have none.
        temperature: divides the logits of both sides in the logit loss.
        head_chunk_mib: largest size of the float32 logits of the positions that are computed at a time, MiB.
        attention_chunk_mib: largest size of one float32 copy of the attention rows that are computed at a time, MiB.
            None: 8 on a CPU, whose cache holds as much, and 256 on a GPU.
        attention_layers: the student's decoder layers whose attention is compared, each with a layer of the teacher or
            with the mean of a list of them, such as `{0: 0, 1: [1, 2]}`; or a band of the student's depth such as
            `30%-70%`, whose k layers are compared with the m stored layers of the teacher, the i-th with the mean of
            its layers i to i + m - k. None: the first layer of both that has attention.
        attention_form: difference of the attention. `mse`: squared error of each value. `kl`: KL(teacher, student) of
            each row over its columns and one outcome for all other keys. `cosine`: 1 - cosine of the whole map of a
            sample and head. `row_cosine`: 1 - cosine of each row.
        attention_heads: what each student head is compared with. `adapter`: a trained mixture of the teacher's heads.
            `grouped`: the mean of its group of neighbouring teacher heads. `mean`: the means of all heads of both sides
            are compared.
        attention_row_weights: weight of each row, by the teacher's attention. `sharpness`: 1 - entropy / ln(columns).
            `surprise`: KL to the mean map. Mean map and mean weight are those of at most 64 samples of the store.
        attention_decay: share of the steps after which the weight of the attention loss has fallen to 0 along a cosine;
            in an extension of the steps of the first run. None: it stays.
    """

    supervised_on_generated: Amount = 1.0
    logit_divergence: LogitDivergence = "reverse_kl"
    logit_mixture: float | None = Field(default=None, gt=0, lt=1)
    temperature: Positive = 1.0
    head_chunk_mib: Count = 64
    attention_chunk_mib: Count | None = None
    attention_layers: LayerMap | None = None
    attention_form: AttentionForm = "mse"
    attention_heads: AttentionHeads = "adapter"
    attention_row_weights: RowWeights = "none"
    attention_decay: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _decoder_is_trained(self) -> Self:
        on_logits = [name for name, term in TERMS.items() if term.on_logits is not None or name == PREFERENCE]
        if not self.weights.keys() & {*on_logits}:
            raise ValueError(
                f"{' and '.join(on_logits)} are {'both' if len(on_logits) == 2 else 'all'} 0, so nothing trains the "
                "decoder; set one above 0"
            )
        return self

    @model_validator(mode="after")
    def _mixture_is_used(self) -> Self:
        if self.logit_mixture is not None and self.logit_divergence in PLAIN:
            raise ValueError(
                f"logit_mixture is {self.logit_mixture}, but logit_divergence {self.logit_divergence!r} mixes nothing; "
                f"leave logit_mixture out or take one of {', '.join(MIXED)}"
            )
        return self

    @model_validator(mode="after")
    def _factor_is_used(self) -> Self:
        if self.weighs_generated and "supervised" not in self.weights:
            raise ValueError(
                f"supervised_on_generated is {self.supervised_on_generated}, but supervised is 0, so there is no "
                "cross-entropy; leave supervised_on_generated out or set supervised above 0"
            )
        return self

    @model_validator(mode="after")
    def _rows_have_weights(self) -> Self:
        if self.attention_form == "cosine" and self.attention_row_weights != "none":
            raise ValueError(
                f"attention_row_weights is {self.attention_row_weights!r}, but attention_form 'cosine' compares whole "
                "maps, which have no weights of rows; set it to 'none', or attention_form to 'row_cosine', 'kl' or "
                "'mse'"
            )
        return self

    def weights_at(self, progress: float) -> dict[str, float]:
        """`weights` after a share of the run's optimiser steps: that of the attention loss may fall to 0."""
        weights = self.weights
        if self.attention_decay is not None and "attention" in weights:
            passed = min(progress / self.attention_decay, 1.0)
            weights["attention"] *= 0.5 * (1 + math.cos(math.pi * passed))
        return weights

    def problems_with(self, logits_kind: str, where: str, tail: str | None = None) -> list[str]:
        """Why the logit loss cannot use a kind of stored logits, one line per reason.

        Args:
            where: names the store.
            tail: `LogitsCodec.tail` of the store.
        """
        if "logit" not in self.weights:
            return []
        found, problems = f"but {where} keeps logits {logits_kind!r}", []
        if tail == "unknown" and not self.on_support:
            problems.append(
                f"losses.logit_divergence is {self.logit_divergence!r}, {found} with tail 'unknown', which leave only "
                f"divergences on the support; set it to {', '.join(SUPPORT)}"
            )
        if self.on_support and logits_kind not in ("topk", "nucleus", "none"):
            problems.append(
                f"losses.logit_divergence is {self.logit_divergence!r}, {found}, which have no support of kept tokens; "
                f"set it to {self.logit_divergence.removeprefix('support_')!r} or dump 'topk' or 'nucleus' logits"
            )
        elif logits_kind == "sampled" and self.logit_divergence != "forward_kl":
            problems.append(
                f"losses.logit_divergence is {self.logit_divergence!r}, {found}, which estimate 'forward_kl' only; "
                "set it to 'forward_kl' or dump other logits"
            )
        tempered = ("full", "hidden", "none", *(("topk", "nucleus") if self.on_support else ()))
        if logits_kind not in tempered and self.temperature != 1.0:
            problems.append(
                f"losses.temperature is {self.temperature}, {found}, which fit temperature 1.0 only; set it to 1.0 or "
                "dump 'hidden' or 'full' logits"
            )
        return problems

    def problem_of_counterfactual(self, term: str, removed: str | None) -> str | None:
        """Why a term cannot use a store's counterfactual pass, in one line; None if it can.

        Args:
            removed: what the pass replaced, `image` or `focus`; None: the store has no such pass.
        """
        weight = self.weights[term]
        if removed is None:
            return (
                f"losses.{term} is {weight}, but the teacher's counterfactual pass is not stored; set it to 0 or dump "
                "with store.counterfactual"
            )
        if term == KEEP and removed == "image":
            return (
                f"losses.{term} is {weight}, but the counterfactual pass replaced the whole image (remove 'image'), so "
                "no evidence is kept; set it to 0 or dump with store.counterfactual.remove focus"
            )
        return None

    def attention_chunk_bytes(self, device_type: str) -> int:
        """`attention_chunk_mib` in bytes, on a kind of device such as `cpu` or `cuda`."""
        return chunk_bytes_on(device_type) if self.attention_chunk_mib is None else self.attention_chunk_mib << 20

    @property
    def weighs_generated(self) -> bool:
        """Whether answers that a model wrote count differently from others."""
        return self.supervised_on_generated != 1.0

    @property
    def on_support(self) -> bool:
        """Whether the logit loss compares the teacher's kept tokens alone."""
        return self.logit_divergence in SUPPORT

    @property
    def divergence(self) -> Divergence:
        """The divergence of the logit loss, with its mixture."""
        return named_divergence(self.logit_divergence, self.logit_mixture)

    def head_inputs(
        self,
        labels_N: Tensor,
        targets: LogitTargets | None,
        teacher_head: Head | None,
        *,
        num_tokens: int | None = None,
        generated_N: Tensor | None = None,
        rejected_N: Tensor | None = None,
    ) -> HeadInputs:
        """What the terms on logits need of a batch and of these settings.

        Args:
            generated_N, rejected_N: as in `TrainBatch`.
        """
        factors_N = None
        if self.weighs_generated and generated_N is not None:
            factors_N = torch.where(generated_N, self.supervised_on_generated, 1.0)
        return HeadInputs(
            labels_N=labels_N,
            targets=targets,
            teacher_head=teacher_head,
            num_tokens=num_tokens,
            divergence=self.divergence,
            temperature=self.temperature,
            on_support=self.on_support,
            label_factors_N=factors_N,
            kept_N=None if rejected_N is None else ~rejected_N,
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        return {name: weight for name in TERMS if (weight := float(getattr(self, name))) > 0}

    @property
    def needed_targets(self) -> dict[str, Target]:
        """The target that each term with a weight above 0 needs, by term; terms that need none are left out."""
        return {name: target for name in self.weights if (target := TERMS[name].target) is not None}
