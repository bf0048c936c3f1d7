"""Settings of the loss terms; their weights are keys made from the table `alignkd.student_train.objective.terms`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, create_model, model_validator
from torch import Tensor

from alignkd.storage.schema.targets.vision import LAST_HIDDEN, PROJECTOR, check_relations_of, layer_of_relations
from alignkd.student_train.data.targets import LogitTargets
from alignkd.student_train.losses.attention.row_weights import RowWeights
from alignkd.student_train.losses.logits.divergences.f_divergences import named_divergence
from alignkd.student_train.losses.logits.divergences.taid import SHARE
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.position_groups import position_groups
from alignkd.student_train.objective.attention.layer_map import LayerMap
from alignkd.student_train.objective.attention.match import MAP_FORMS, AttentionForm, AttentionHeads
from alignkd.student_train.objective.counterfactual_terms import KEEP
from alignkd.student_train.objective.logits.divergence_checks import problem_of_settings, problems_with_store
from alignkd.student_train.objective.logits.divergence_settings import BildConfig, SinkhornConfig
from alignkd.student_train.objective.logits.divergence_table import DIVERGENCES, LogitDivergence
from alignkd.student_train.objective.logits.taid_schedule import TaidConfig
from alignkd.student_train.objective.preference.settings import PREFERENCE
from alignkd.student_train.objective.term import HeadInputs, Target
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.objective.vision.settings import RelationRows, VisionSettings, VisualDivergence
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.families.family import Head
from alignkd.vlm.settings import Amount, Count, CountFromZero, Positive, Settings

LogitGroups = Literal["visual_advantage"]
# of `logit_group_share`: ours, no paper gives one for stored targets
DEFAULT_SHARE = 0.2
# (1 + p)^100 is finite in float32
MAX_GAMMA = 100
VisionMatching = Literal["place", "hungarian"]
# the terms whose vision tokens `vision_matching` chooses
MATCHED = ("vsd", "vlad")

if TYPE_CHECKING:
    _Weights = Settings
else:
    _Weights = create_model(
        "_Weights",
        __base__=Settings,
        **{name: (Amount, Field(default=term.weight, description=term.meaning)) for name, term in TERMS.items()},
    )


# settings of terms without which they have no meaning
_KEYS_OF_TERMS = {
    "relation": ("relations_of", "relation_rows"),
    "visual_logit": ("visual_logit_divergence", "visual_logit_temperature"),
}


class LossConfig(_Weights):
    """Weight of each term of eq. 7; a term of weight 0 is not computed. Defaults are the paper's.

    Attributes:
        supervised_on_generated: factor of the cross-entropy at the tokens of answers that a model wrote (turns with
            `generated`, as `alignkd generate` marks them); 0 trains on none of them. The term is the mean of factor
            times cross-entropy over all supervised positions. Validation reports plain cross-entropy.
        logit_divergence: divergence of the logit loss; formulas in docs/objectives.md. Those on the support
            compare the tokens that a `topk` or `nucleus` store keeps, renormalised on both sides: all that a store with
            an unknown tail allows.
        logit_mixture: share of the teacher in the mixture of `js` and `support_js` (default 0.5); share of the
            distribution that comes first in the divergence for `skewed_reverse_kl` and `skewed_forward_kl` (default
            0.1). The plain divergences have none.
        ofa_gamma: exponent of the label's weight in `ofa` (default 1, with which it is the cross-entropy of teacher and
            student).
        akl_head: share of the teacher's mass that the most probable tokens have which are the head in `akl` (default
            0.5).
        bild: settings of `bild`; None: its defaults.
        sinkhorn: settings of `sinkhorn`; None: its defaults.
        taid: intermediate teacher of `taid`; None: its defaults.
        temperature: divides the logits of both sides in the logit loss.
        logit_groups: `visual_advantage`: the logit loss is the mean over the positions of each sample at which the
            image helps the teacher most plus the mean over all other positions: the few count as much as the many.
            Samples without images have other positions only. Validation reports the plain mean. Needs a store with
            `store.counterfactual`. None: one mean over all positions.
        logit_group_share: share of a sample's positions in the first group (default 0.2), rounded down.
        relations_of: the states that the loss `relation` compares: `last_hidden`, the last hidden states after the
            final norm; `projector`, the projector's output; `layer_K`, the output of the teacher's decoder layer K.
        relations_layer: the student's decoder layer that is compared with `layer_K`.
        relation_rows: `unit` divides states by their norms, so that relations are cosines; `plain` does not, which
            needs the teacher's states: `vision_states`, or `vision_all` for the projector.
        visual_logit_divergence: divergence of the loss `visual_logit`, as in `logit_divergence`.
        visual_logit_temperature: divides the logits of both sides in the loss `visual_logit`.
        head_chunk_mib: largest size of the float32 logits of the positions that are computed at a time, MiB.
        attention_chunk_mib: largest size of one float32 copy of the attention rows that are computed at a time, MiB.
            None: 8 on a CPU, whose cache holds as much, and 256 on a GPU.
        vision_matching: which vision tokens `vsd` and `vlad` compare. `place`: those of the same places of an image.
            `hungarian`: the pairs with the smallest sum of L1 distances between logits, one to one within each image,
            for which the host waits once per micro-batch; teacher and student may make unequally many of an image.
        attention_layers: the student's decoder layers whose attention is compared, each with a layer of the teacher or
            with the mean of a list of them, such as `{0: 0, 1: [1, 2]}`; or a band of the student's depth such as
            `30%-70%`, whose k layers are compared with the m stored layers of the teacher, the i-th with the mean of
            its layers i to i + m - k. None: the first layer of both that has attention.
        attention_form: difference of the attention. `mse`: squared error of each value. `kl`: KL(teacher, student) of
            each row over its columns and one outcome for all other keys. `cosine`: 1 - cosine of the whole map of a
            sample and head. `row_cosine`: 1 - cosine of each row. `filtered_cosine`: 1 - cosine of the column means of
            a sample's map from vision tokens to vision tokens, without entries above mean + standard deviation.
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
    ofa_gamma: float | None = Field(default=None, ge=1, le=MAX_GAMMA)
    akl_head: float | None = Field(default=None, gt=0, lt=1)
    bild: BildConfig | None = None
    sinkhorn: SinkhornConfig | None = None
    taid: TaidConfig | None = None
    temperature: Positive = 1.0
    logit_groups: LogitGroups | None = None
    logit_group_share: float | None = Field(default=None, ge=0, le=1)
    relations_of: Annotated[str, AfterValidator(check_relations_of)] = LAST_HIDDEN
    relations_layer: CountFromZero | None = None
    relation_rows: RelationRows = "unit"
    visual_logit_divergence: VisualDivergence = "forward_kl"
    visual_logit_temperature: Positive = 1.0
    head_chunk_mib: Count = 64
    attention_chunk_mib: Count | None = None
    vision_matching: VisionMatching = "place"
    attention_layers: LayerMap | None = None
    attention_form: AttentionForm = "mse"
    attention_heads: AttentionHeads = "adapter"
    attention_row_weights: RowWeights = "none"
    attention_decay: float | None = Field(default=None, gt=0, le=1)

    @property
    def compares_layers(self) -> bool:
        """Whether `attention_layers` names layers; else the first one is compared."""
        return self.attention_layers is not None

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
    def _settings_of_divergence_are_used(self) -> Self:
        if (problem := problem_of_settings(self)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _groups_are_used(self) -> Self:
        if self.logit_groups is not None and "logit" not in self.weights:
            raise ValueError(
                f"logit_groups is {self.logit_groups!r}, but logit is 0, so there is no logit loss; leave logit_groups "
                "out or set logit above 0"
            )
        if self.logit_group_share is not None and self.logit_groups is None:
            raise ValueError(
                f"logit_group_share is {self.logit_group_share}, but logit_groups is not given; leave it out, or set "
                "logit_groups to 'visual_advantage'"
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
    def _matching_is_used(self) -> Self:
        if self.vision_matching != "place" and not self.weights.keys() & {*MATCHED}:
            raise ValueError(
                f"vision_matching is {self.vision_matching!r}, but {' and '.join(MATCHED)} are 0, so nothing is "
                "matched; leave vision_matching out or set one of them above 0"
            )
        return self

    @model_validator(mode="after")
    def _rows_have_weights(self) -> Self:
        if self.attention_form in MAP_FORMS and self.attention_row_weights != "none":
            raise ValueError(
                f"attention_row_weights is {self.attention_row_weights!r}, but attention_form "
                f"{self.attention_form!r} compares whole maps, which have no weights of rows; set it to 'none', or "
                "attention_form to 'row_cosine', 'kl' or 'mse'"
            )
        return self

    @model_validator(mode="after")
    def _layers_of_relations(self) -> Self:
        layer = layer_of_relations(self.relations_of)
        if layer is not None and self.relations_layer is None:
            raise ValueError(
                f"relations_of is {self.relations_of!r}, a layer of the teacher, but relations_layer is not given; set "
                "it to the student's layer that is compared with it"
            )
        if layer is None and self.relations_layer is not None:
            raise ValueError(
                f"relations_layer is {self.relations_layer}, but relations_of {self.relations_of!r} is not a "
                "layer; leave relations_layer out, or set relations_of to layer_K"
            )
        if layer is not None and self.relation_rows == "plain":
            raise ValueError(
                f"relation_rows is 'plain', but of {self.relations_of!r} a store keeps cosines alone; set it to 'unit'"
            )
        return self

    @model_validator(mode="after")
    def _vision_settings_are_used(self) -> Self:
        for term, keys in _KEYS_OF_TERMS.items():
            changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if changed and term not in self.weights:
                raise ValueError(
                    f"{changed[0]} is {getattr(self, changed[0])!r}, but {term} is 0, so it is not used; leave "
                    f"{changed[0]} out or set {term} above 0"
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
        return problems_with_store(self, logits_kind, where, tail) if "logit" in self.weights else []

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
    def divergence(self) -> RowDivergence:
        """The divergence of the logit loss, with its settings."""
        return DIVERGENCES[self.logit_divergence].make(self)

    @property
    def taid_of_logit(self) -> TaidConfig | None:
        """`taid` of a logit loss that has a weight and is TAID; None of any other."""
        is_taid = self.logit_divergence == "taid" and "logit" in self.weights
        return (self.taid or TaidConfig()) if is_taid else None

    @property
    def first_step_values(self) -> dict[str, float]:
        """The `step_values` of `HeadInputs` before the first step."""
        config = self.taid_of_logit
        return {} if config is None else {SHARE: config.start}

    @property
    def for_validation(self) -> Self:
        """The same terms in a form that does not change from step to step and can be compared between runs.

        Cross-entropy is plain, whatever its factor on answers of a model, and the logit loss is one mean over all
        positions, whatever its groups. TAID's loss is smaller the less its t is, for
        the same student: validated is forward KL, which it becomes at t = 1.
        """
        plain: dict[str, Any] = {"supervised_on_generated": 1.0, "logit_groups": None}
        if self.logit_divergence == "taid":
            plain |= {"logit_divergence": "forward_kl", "taid": None}
        return self.model_copy(update=plain)

    def head_inputs(
        self,
        labels_N: Tensor,
        targets: LogitTargets | None,
        teacher_head: Head | None,
        *,
        num_tokens: int | None = None,
        generated_N: Tensor | None = None,
        rejected_N: Tensor | None = None,
        logit_factors_N: Tensor | None = None,
        step_values: Mapping[str, float] | None = None,
        positions_of_sample: Sequence[int] | None = None,
    ) -> HeadInputs:
        """What the terms on logits need of a batch and of these settings.

        Args:
            generated_N, rejected_N: as in `TrainBatch`.
            logit_factors_N: as in `HeadInputs`.
            step_values: as in `HeadInputs`; None: those before the first step.
            positions_of_sample: as in `TrainBatch`; None: the positions are those of one sample.
        """
        factors_N = None
        if self.weighs_generated and generated_N is not None:
            factors_N = torch.where(generated_N, self.supervised_on_generated, 1.0)
        divergence = self.divergence
        groups: tuple[int, ...] = ()
        if targets is not None and divergence.group_positions is not None:
            groups = position_groups(positions_of_sample or [len(labels_N)], divergence.group_positions)
        return HeadInputs(
            labels_N=labels_N,
            targets=targets,
            teacher_head=teacher_head,
            num_tokens=num_tokens,
            divergence=divergence,
            temperature=self.temperature,
            step_values=self.first_step_values if step_values is None else step_values,
            groups=groups,
            label_factors_N=factors_N,
            kept_N=None if rejected_N is None else ~rejected_N,
            logit_factors_N=logit_factors_N,
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        return {name: weight for name in TERMS if (weight := float(getattr(self, name))) > 0}

    @property
    def chosen_settings(self) -> dict[str, Any]:
        """The settings that are not the defaults, without the weights, as plain values; and the used divergence."""
        used = {"logit_divergence": self.logit_divergence} if "logit" in self.weights else {}
        chosen = {name: value for name, value in self.model_dump(exclude_defaults=True).items() if name not in TERMS}
        return used | chosen

    @property
    def recorded_layers(self) -> tuple[int, ...]:
        """The student's decoder layers whose output a term compares."""
        return () if self.relations_layer is None else (self.relations_layer,)

    @property
    def vision_settings(self) -> VisionSettings:
        """Settings of the terms on vision tokens."""
        return VisionSettings(
            relations_of=self.relations_of,
            layer=self.relations_layer,
            unit_rows=self.relation_rows == "unit",
            divergence=named_divergence(self.visual_logit_divergence),
            temperature=self.visual_logit_temperature,
        )

    @property
    def needs_teacher_head(self) -> bool:
        """Whether a term, or the matching, makes logits of the teacher's states at vision positions."""
        return self.vision_matching == "hungarian" or any(TERMS[name].teacher_head for name in self.weights)

    def targets_in(self, *, relations: str | None, norms: bool) -> dict[str, Target]:
        """`needed_targets`, with what a store has in place of `vision_relations` and `state_norms`.

        Relations are stored, or follow from the teacher's states: those at the vision positions, or the projector's
        output. Norms are stored, or follow from logits that are stored as hidden states.

        Args:
            relations: the states of which relations are stored; None: of none.
            norms: whether norms are stored.
        """
        found = self.needed_targets
        stored = relations == self.relations_of and self.relation_rows == "unit"
        if "relation" in found and not stored:
            other: dict[str, Target] = {LAST_HIDDEN: "vision_states", PROJECTOR: "vision_all"}
            found["relation"] = other.get(self.relations_of, "vision_relations")
        if "nd" in found and not norms:
            found["nd"] = "logits"
        return found

    @property
    def needed_targets(self) -> dict[str, Target]:
        """The target that each term with a weight above 0 needs, by term; terms that need none are left out.

        A matching of vision tokens needs a target, too; it is under the name `vision_matching`.
        """
        found = {name: target for name in self.weights if (target := TERMS[name].target) is not None}
        if self.vision_matching == "hungarian" and "vision_states" not in found.values():
            found["vision_matching"] = "vision_states"
        return found

    @property
    def high_share(self) -> float | None:
        """Share of a sample's positions in the high group of the logit loss; None: there are no groups."""
        if self.logit_groups is None:
            return None
        return DEFAULT_SHARE if self.logit_group_share is None else self.logit_group_share
