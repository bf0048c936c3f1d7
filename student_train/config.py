"""Training settings as a user writes them: unknown keys refused, relations checked at construction."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

from alignkd.storage.codecs.settings import STEM_TARGETS
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.divergences import PLAIN, Divergence, LogitDivergence, named_divergence
from alignkd.student_train.objective.adapters import AdapterInit
from alignkd.vlm.settings import Amount, Count, CountFromZero, Positive, Settings, UserPath

Preset = Literal["paper", "supervised"]
TargetSource = Literal["stored", "stem"]
TERMS = ("supervised", "attention", "vision_all", "vision_focus", "logit")
# what each distilled term compares with, as `store` and `targets` name it
TARGET_OF_TERM = {
    "attention": "attention",
    "vision_all": "vision_all",
    "vision_focus": "vision_top",
    "logit": "logits",
}
PRESETS: dict[Preset, dict[str, float]] = {
    "paper": {"supervised": 1.0, "attention": 1.0, "vision_all": 1.0, "vision_focus": 0.1, "logit": 1.0},
    "supervised": {"supervised": 1.0, "attention": 0.0, "vision_all": 0.0, "vision_focus": 0.0, "logit": 0.0},
}


def _over(base: Mapping[str, Any], given: Any) -> Any:
    """The base of a preset or profile with what is given explicitly; what is no mapping is the field's own error."""
    given = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
    return {**base, **(given or {})} if given is None or isinstance(given, dict) else given


class LossConfig(Settings):
    """Weight of each term of eq. 7; a term of weight 0 is not computed. Defaults are the paper's.

    Attributes:
        supervised: weight of cross-entropy with the labels.
        attention: weight of the loss on the first layer's attention from text queries to vision tokens.
        vision_all: weight of the loss on all vision embeddings.
        vision_focus: weight of the loss on the embeddings of the vision tokens that the teacher attends to most.
        logit: weight of the loss on the distribution at supervised positions.
        logit_divergence: of the logit loss, formulas in `losses/divergences.py`.
        logit_mixture: share of the teacher in the mixture of `js` (default 0.5), of the own side in that of
            `skewed_reverse_kl` and `skewed_forward_kl` (default 0.1); the plain ones have none.
        temperature: divides both sides' logits in the logit loss.
        head_chunk_mib: most that the float32 logits of the positions in work at a time take, MiB.
        attention_chunk_mib: most that one float32 copy of the attention rows in work at a time takes, MiB.
    """

    supervised: Amount = 1.0
    attention: Amount = 1.0
    vision_all: Amount = 1.0
    vision_focus: Amount = 0.1
    logit: Amount = 1.0
    logit_divergence: LogitDivergence = "reverse_kl"
    logit_mixture: float | None = Field(default=None, gt=0, lt=1)
    temperature: Positive = 1.0
    head_chunk_mib: Count = 64
    attention_chunk_mib: Count = 8

    @model_validator(mode="after")
    def _decoder_is_trained(self) -> Self:
        if self.supervised == 0 and self.logit == 0:
            raise ValueError("supervised and logit are both 0, so nothing trains the decoder; set one above 0")
        return self

    @model_validator(mode="after")
    def _mixture_is_used(self) -> Self:
        if self.logit_mixture is not None and self.logit_divergence in PLAIN:
            raise ValueError(
                f"logit_mixture is {self.logit_mixture}, but logit_divergence {self.logit_divergence!r} mixes nothing; "
                "leave logit_mixture out or take 'js', 'skewed_reverse_kl' or 'skewed_forward_kl'"
            )
        return self

    def problems_with(self, logits_kind: str, where: str) -> list[str]:
        """Why the logit loss cannot be computed from a kind of stored logits; a line each, `where` names the store."""
        if self.logit == 0:
            return []
        found, problems = f"but {where} keeps logits {logits_kind!r}", []
        if logits_kind == "sampled" and self.logit_divergence != "forward_kl":
            problems.append(
                f"losses.logit_divergence is {self.logit_divergence!r}, {found}, which estimate 'forward_kl' only; "
                "set it to 'forward_kl' or dump other logits"
            )
        if logits_kind not in ("full", "hidden", "none") and self.temperature != 1.0:
            problems.append(
                f"losses.temperature is {self.temperature}, {found}, which fit temperature 1.0 only; set it to 1.0 or "
                "dump 'hidden' or 'full' logits"
            )
        return problems

    @property
    def divergence(self) -> Divergence:
        """The logit loss's divergence, with its mixture."""
        return named_divergence(self.logit_divergence, self.logit_mixture)

    @property
    def weights(self) -> dict[str, float]:
        """The weights above 0 by term."""
        return {term: weight for term in TERMS if (weight := float(getattr(self, term))) > 0}


class TargetSources(Settings):
    """Where each target comes from: `stored` by the store, or computed by the teacher's `stem` in every step.

    None takes what the store keeps from the store, and the rest from the stem. For logits, which must be stored as
    hidden states then, `stem` takes the `lm_head` of the stem file in place of the store's.

    Attributes:
        attention, vision_top, vision_all, logits: source of this target.
    """

    attention: TargetSource | None = None
    vision_top: TargetSource | None = None
    vision_all: TargetSource | None = None
    logits: TargetSource | None = None


class TrainConfig(Settings):
    """One training run of a student.

    Attributes:
        output: folder of checkpoints, metrics and the exported student.
        steps: optimiser steps; this or `epochs`.
        epochs: passes over the store instead, rounded up to whole global batches.
        micro_batch: samples per forward pass and device.
        global_batch: samples per optimiser step over all devices; None is `micro_batch` times the devices.
        learning_rate: peak of the cosine; also of the projector and the adapters unless these are given.
        projector_learning_rate: peak for the projector; None is `learning_rate`.
        adapter_learning_rate: peak for the adapters; None is `learning_rate`.
        weight_decay: of AdamW.
        warmup_ratio: share of `steps` over which the learning rate rises linearly.
        gradient_clip: largest gradient norm; 0 switches clipping off.
        seed: of the sample order and of fresh adapters.
        checkpoint_every: optimiser steps between checkpoints; None leaves them to `checkpoint_minutes`.
        checkpoint_minutes: most minutes of training without a checkpoint; None or 0 sets no limit.
        keep_checkpoints: newest checkpoints kept.
        offload_optimizer: keep optimiser state and master weights in host memory (ZeRO-Offload).
        float32_gradients: add up the gradients of micro-batches in float32, also where weights have 16 bits. False adds
            in the weights' dtype, which takes less of the device where the optimiser is offloaded.
        gradient_checkpointing: keep only each decoder layer's input for the backward pass and compute the layer again.
        skip_limit: a run ends when so many steps in a row had no finite loss or gradient and were skipped.
        adapters: adapters of an earlier stage to start from; None starts fresh ones.
        adapter_init: how fresh adapters start: `pytorch` as in the reference code; `mean_of_heads` each student head at
            the mean of the teacher's heads, `grouped_heads` at the mean of its own group of them.
        preset: base of `losses`, over which its explicit keys win.
        losses: weight of each term, and settings of the logit loss.
        profile: base of `targets`, over which its explicit keys win: `stored` or `stem` for attention and vision.
        targets: where each target comes from.
        stem: the teacher's stem, a file of `alignkd stem extract`; None takes the one that the store carries.
        log_every: optimiser steps between lines of progress.
        tensorboard: write `OUTPUT/tensorboard` beside `OUTPUT/metrics.jsonl`.
        data_workers: processes that prepare batches; 0 prepares them in the training process.
    """

    output: UserPath
    steps: Count | None = None
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    micro_batch: Count = 8
    global_batch: Count | None = None
    learning_rate: Positive = 4e-5
    projector_learning_rate: Positive | None = None
    adapter_learning_rate: Positive | None = None
    weight_decay: Amount = 0.0
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    gradient_clip: Amount = 1.0
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_every: Count | None = None
    checkpoint_minutes: Amount | None = 30.0
    keep_checkpoints: Count = 2
    offload_optimizer: bool = False
    float32_gradients: bool = True
    gradient_checkpointing: bool = False
    skip_limit: Count = 10
    adapters: UserPath | None = None
    adapter_init: AdapterInit = "pytorch"
    preset: Preset | None = None
    losses: LossConfig = LossConfig()
    profile: TargetSource | None = None
    targets: TargetSources = TargetSources()
    stem: UserPath | None = None
    log_every: Count = 10
    tensorboard: bool = True
    data_workers: CountFromZero = 0

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in tuple(PRESETS):
            return values  # an unknown preset is the field's own error
        return {**values, "losses": _over(PRESETS[values["preset"]], values.get("losses"))}

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("profile") not in get_args(TargetSource):
            return values  # an unknown profile is the field's own error
        return {**values, "targets": _over(dict.fromkeys(STEM_TARGETS, values["profile"]), values.get("targets"))}

    @model_validator(mode="after")
    def _length_is_given_once(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            found = "neither" if self.steps is None else f"steps {self.steps} and epochs {self.epochs}"
            raise ValueError(f"give steps or epochs, found {found}")
        return self

    def optimiser_steps(self, num_samples: int, world_size: int) -> int:
        """`steps`, or what `epochs` over so many samples come to.

        Raises:
            TrainError: as `global_batch_size`.
        """
        if self.epochs is None:
            return self.num_steps
        # 0.1 epochs of 30 samples are 3 samples, not 3.0000000000000004
        samples = math.ceil(round(self.epochs * num_samples, 6))
        return math.ceil(samples / self.global_batch_size(world_size))

    def in_steps(self, num_samples: int, world_size: int) -> Self:
        """The same settings with `steps` in place of `epochs`."""
        return self.model_copy(update={"steps": self.optimiser_steps(num_samples, world_size), "epochs": None})

    @property
    def num_steps(self) -> int:
        """`steps` of settings that are given in steps, as `in_steps` makes them."""
        assert self.steps is not None
        return self.steps

    def global_batch_size(self, world_size: int) -> int:
        """Samples per optimiser step.

        Raises:
            TrainError: the devices cannot fill `global_batch` with whole micro-batches.
        """
        pass_size = self.micro_batch * world_size
        if self.global_batch is None:
            return pass_size
        if self.global_batch % pass_size:
            raise TrainError(
                f"global_batch {self.global_batch} is no multiple of micro_batch {self.micro_batch} x {world_size} "
                f"devices = {pass_size}; change one of them"
            )
        return self.global_batch

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches per device and optimiser step."""
        return self.global_batch_size(world_size) // (self.micro_batch * world_size)

    def accumulates(self, world_size: int) -> bool:
        """Whether an optimiser step has more than one micro-batch per device."""
        return self.accumulation_steps(world_size) > 1
