"""Training settings as a user writes them: unknown keys refused, relations between keys checked at construction."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from alignkd.storage.codecs.settings import STEM_TARGETS
from alignkd.student_train.data.division import MicroBatchLimit
from alignkd.student_train.domain_weights_config import DomainWeights
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.preference import PreferenceLoss
from alignkd.student_train.objective.adapters import AdapterInit
from alignkd.student_train.objective.preference.settings import PREFERENCE, PreferenceSettings
from alignkd.student_train.objective.presets import preset_losses, preset_train
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.term import Preset
from alignkd.student_train.validation_config import LOSS, ValidationConfig
from alignkd.vlm.kernels.choice import Kernels
from alignkd.vlm.settings import COMPLETE, Amount, Count, CountFromZero, Positive, Settings, UserPath, described

TargetSource = Literal["stored", "stem"]
ScheduleOfExtension = Literal["restart", "linear", "constant"]
# The samples of a step are listed at once; a mistyped number must not take the memory of the machine.
BatchSize = Annotated[int, Field(ge=1, le=1 << 20)]
OptimizerName = Literal["adamw", "adamw_8bit", "adamw_offload"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


def samples_of_epochs(epochs: float, num_samples: int) -> int:
    """How many samples so many passes over the store are, rounded up to whole samples."""
    # 0.1 epochs of 30 samples are 3 samples, not 3.0000000000000004
    return math.ceil(round(epochs * num_samples, 6))


def _over(base: Mapping[str, Any], given: Any) -> Any:
    """The values of a preset or profile, overridden by explicit ones; anything but a mapping is left to the field."""
    given = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
    return {**base, **(given or {})} if given is None or isinstance(given, dict) else given


def _tracker_names(value: Any) -> Any:
    """One name is a list of one, `none` is the empty list; anything but names is refused in one line."""
    names = [] if value in ("none", None) else [value] if isinstance(value, str) else value
    known = get_args(TrackerName)
    if not isinstance(names, list | tuple) or any(name not in known for name in names):
        unknown = next((name for name in names if name not in known), value) if isinstance(names, list) else value
        problem = f"expected none, {', '.join(known[:-1])}, {known[-1]} or a list of them, found {described(unknown)}"
        raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})
    return tuple(dict.fromkeys(names))


TrackerNames = Annotated[
    tuple[TrackerName, ...],
    BeforeValidator(_tracker_names),
    Field(title="`none`, or a list of `tensorboard` `wandb` `trackio`"),
]


class TargetSources(Settings):
    """Source of each target: `stored` in the store, or computed by the teacher's `stem` in every step.

    None takes stored targets from the store, and the others from the stem. For logits, which must then be stored as
    hidden states, `stem` takes the `lm_head` of the stem file instead of the store's.

    Attributes:
        attention, vision_top, vision_all, logits: source of this target.
    """

    attention: TargetSource | None = None
    vision_top: TargetSource | None = None
    vision_all: TargetSource | None = None
    logits: TargetSource | None = None


class ExtendConfig(Settings):
    """Goes on from the last state of an earlier run, in a new output.

    Attributes:
        run: output folder of the earlier run, finished or stopped; it is only read.
        schedule: learning rate of the added steps. `restart`: warm-up and cosine to 0; `linear`: from the last rate of
            the earlier run to 0; `constant`: stays at that rate.
        learning_rate: peak of `restart`, first rate of `linear`, rate of `constant`; projector and adapters keep their
            ratio to it. None is `train.learning_rate` for `restart`, otherwise the last rate of the earlier run.
    """

    run: UserPath
    schedule: ScheduleOfExtension
    learning_rate: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _schedule_is_chosen(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("schedule") is None:
            problem = (
                "schedule is missing: the cosine of the earlier run has ended, or is planned for its own number of "
                "steps; choose restart (warm-up and cosine over the added steps), linear (from its last learning rate "
                "to 0) or constant (stays at that rate)"
            )
            raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})
        return values


# key of an earlier version -> the present setting for its value
_EARLIER_KEYS: dict[str, Callable[[Any], str]] = {
    "offload_optimizer": lambda value: f"optimizer: {'adamw_offload' if value is True else 'adamw'}",
    "tensorboard": lambda value: f"report_to: {'none' if value is False else 'tensorboard, which is the default'}",
}


class TrainConfig(Settings):
    """One training run of a student.

    Attributes:
        output: folder of checkpoints, metrics and the exported student.
        steps: optimiser steps; this or `epochs`.
        epochs: passes over the store instead, rounded up to whole global batches.
        micro_batch: samples per forward pass and device; this or `token_budget`.
        token_budget: padded tokens (text + vision) per forward pass and device, in place of `micro_batch`: samples
            times the longest of them. A longer sample is alone.
        global_batch: samples per optimiser step over all devices; None is `micro_batch` times the number of devices.
            `token_budget` needs it.
        learning_rate: peak of the cosine schedule.
        projector_learning_rate: peak for the projector; None is `learning_rate`.
        adapter_learning_rate: peak for the adapters; None is `learning_rate`, 0 leaves them as they are.
        weight_decay: weight decay of AdamW.
        warmup_ratio: share of `steps` over which the learning rate rises linearly.
        gradient_clip: largest gradient norm; 0 switches clipping off.
        seed: seed of the sample order and of fresh adapters.
        checkpoint_every: optimiser steps between checkpoints; None leaves them to `checkpoint_minutes`.
        checkpoint_minutes: largest time of training without a checkpoint; None or 0 sets no limit.
        keep_checkpoints: number of newest checkpoints that are kept.
        optimizer: `adamw` keeps master weights and moments in float32 on the device; `adamw_8bit` keeps the moments in
            8 bits, those of embeddings and small tensors in float32 (needs bitsandbytes); `adamw_offload` keeps all of
            it in host memory (ZeRO-Offload).
        float32_gradients: sum the gradients of micro-batches in float32, also if weights have 16 bits. False sums in
            the weights' dtype, which takes less device memory.
        gradient_checkpointing: keep only each decoder layer's input for the backward pass and compute the layer again.
        kernels: what computes the decoder's layers: `torch`; `liger`, fused kernels of the library Liger for RMSNorm,
            rotary positions and the gated MLP, which need a CUDA device; `compile`, layers that torch compiles, which
            needs a C++ compiler. They differ by rounding.
        deterministic: compute the same bits in every run on one kind of device. It is for GPUs, which are slower then.
            A CPU repeats to the bit without it.
        skip_limit: the run stops with an error after so many steps in a row that were skipped because loss or gradient
            was not finite.
        adapters: adapters of an earlier stage to start from; None starts fresh ones.
        adapter_init: initial values of fresh adapters: `pytorch` as in the reference code; `mean_of_heads` starts each
            student head at the mean of the teacher's heads, `grouped_heads` at the mean of its own group of them.
        preset: default values of `losses`; explicit keys of `losses` override them. `paper` is Align-KD; `supervised`
            trains without a teacher; the others are the objectives of docs/objectives.md with their authors' defaults.
        losses: weight of each term, and settings of the logit loss.
        preference: loss on pairs of a chosen and a rejected answer, whose weight is `losses.preference`: `dpo`, `ipo`,
            `kto_pair` or `margin_mse`; the teacher is the reference. Every pair is in one micro-batch and counts as one
            sample of `micro_batch` and `global_batch`. `none`: samples are drawn one by one.
        preference_beta: beta of `dpo`, `ipo` and `kto_pair`.
        preference_smoothing: of `dpo`: share of pairs whose answers are assumed to be exchanged.
        kto_kl_gradient: whether the two means over the global batch in `kto_pair` have a gradient, as in the code of
            LLaVA-MoD.
        profile: default values of `targets` for attention and vision; explicit keys of `targets` override them.
        targets: source of each target.
        stem: the teacher's stem, a file written by `alignkd stem extract`; None takes the stem in the store.
        centres: the teacher's class means, a file written by `alignkd shards centres`; the loss `nd` needs it.
        log_every: optimiser steps between lines of progress.
        report_to: where the figures of `OUTPUT/metrics.jsonl` are shown too: `tensorboard` writes
            `OUTPUT/tensorboard`; `wandb` and `trackio` need the extra of that name (docs/follow.md).
        report_project: project of the run at wandb and trackio; None is WANDB_PROJECT for wandb, otherwise `alignkd`.
        data_workers: processes that prepare batches; 0 prepares them in the training process, which keeps them in
            memory if all samples take at most 1 GiB.
        wait_minutes: longest wait of a process for the others, at the start and in every exchange, in which one of them
            may write a checkpoint; then the run ends with an error. A process without a sign of life for 5 minutes, or
            this time if it is shorter, ends the run too.
        domain_weights: shares of the data sets that follow the student during training: `ddk`, or a section with its
            settings; None: the weights of stores and data sets, which stay.
        validation: losses of samples that are not trained on, and the choice of the best state; None: no validation.
        extend: go on from the last state of an earlier run; `steps` or `epochs` count from the beginning of that run.
        keep_each_epoch: write a checkpoint at the end of each pass over the store, and keep it beside the
            `keep_checkpoints` newest.
        keep_every: the same every so many optimiser steps; None keeps no such checkpoints.
    """

    output: UserPath
    steps: Count | None = None
    epochs: float | None = Field(default=None, gt=0, le=1e6)
    micro_batch: BatchSize | None = 8
    token_budget: Count | None = None
    global_batch: BatchSize | None = None
    learning_rate: Positive = 4e-5
    projector_learning_rate: Positive | None = None
    adapter_learning_rate: Amount | None = None
    weight_decay: Amount = 0.0
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    gradient_clip: Amount = 1.0
    seed: int = Field(default=0, ge=0, lt=2**63)
    checkpoint_every: Count | None = None
    checkpoint_minutes: Amount | None = 30.0
    keep_checkpoints: Count = 2
    optimizer: OptimizerName = "adamw"
    float32_gradients: bool = True
    gradient_checkpointing: bool = False
    kernels: Kernels = "torch"
    deterministic: bool = False
    skip_limit: Count = 10
    adapters: UserPath | None = None
    adapter_init: AdapterInit = "pytorch"
    preset: Preset | None = None
    losses: LossConfig = LossConfig()
    preference: Literal[PreferenceLoss, "none"] = "none"
    preference_beta: Amount = 0.1
    preference_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    kto_kl_gradient: bool = False
    profile: TargetSource | None = None
    targets: TargetSources = TargetSources()
    stem: UserPath | None = None
    centres: UserPath | None = None
    log_every: Count = 10
    report_to: TrackerNames = ("tensorboard",)
    report_project: Annotated[str, Field(min_length=1, max_length=128, title="text")] | None = None
    data_workers: CountFromZero = 0
    wait_minutes: float = Field(default=30.0, gt=0, le=1e5)

    domain_weights: DomainWeights | None = None
    validation: ValidationConfig | None = None
    extend: ExtendConfig | None = None
    keep_each_epoch: bool = False
    keep_every: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_earlier_keys(cls, values: Any) -> Any:
        """Refuse the keys of earlier versions, and name what replaces them."""
        for key, now in _EARLIER_KEYS.items() if isinstance(values, dict) else ():
            if key in values:
                problem = f"{key}: {str(values[key]).lower()} is now {now(values[key])}"
                raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})
        return values

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("preset") not in get_args(Preset):
            return values  # an unknown preset is the field's own error
        preset: Preset = values["preset"]
        return {**preset_train(preset, values), **values, "losses": _over(preset_losses(preset), values.get("losses"))}

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("profile") not in get_args(TargetSource):
            return values  # an unknown profile is the field's own error
        return {**values, "targets": _over(dict.fromkeys(STEM_TARGETS, values["profile"]), values.get("targets"))}

    @model_validator(mode="before")
    @classmethod
    def _budget_replaces_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("token_budget") is not None:
            return {"micro_batch": None, **values}
        return values

    @model_validator(mode="after")
    def _micro_batch_is_given_once(self) -> Self:
        if (self.micro_batch is None) == (self.token_budget is None):
            found = "neither"
            if self.micro_batch is not None:
                found = f"micro_batch {self.micro_batch} and token_budget {self.token_budget}"
            advice = "set one of them to null" if self.token_budget else "set one of them"
            raise ValueError(f"give micro_batch or token_budget, found {found}; {advice}")
        if self.token_budget is not None and self.global_batch is None:
            raise ValueError(
                f"token_budget is {self.token_budget}, but global_batch is not given; set it: forward passes have "
                "different numbers of samples, so it has no default"
            )
        return self

    @model_validator(mode="after")
    def _length_is_given_once(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            found = "neither" if self.steps is None else f"steps {self.steps} and epochs {self.epochs}"
            raise ValueError(f"give steps or epochs, found {found}")
        return self

    @model_validator(mode="after")
    def _teacher_of_divergence_is_a_distribution(self) -> Self:
        losses = self.losses
        if "attention" not in losses.weights or losses.attention_form != "kl" or losses.attention_heads != "adapter":
            return self
        if not self.frozen_adapters or (self.adapters is None and self.adapter_init == "pytorch"):
            raise ValueError(
                "losses.attention_form is 'kl', but losses.attention_heads 'adapter' makes of the teacher's attention "
                "what is no distribution; set attention_heads to 'grouped' or 'mean', or keep adapters that are means "
                "(adapter_learning_rate: 0 and adapter_init: grouped_heads)"
            )
        return self

    @model_validator(mode="after")
    def _preference_has_a_weight(self) -> Self:
        weight = self.losses.weights.get(PREFERENCE, 0.0)
        if (self.preference == "none") != (weight == 0):
            step = "choose dpo, ipo, kto_pair or margin_mse, or set losses.preference to 0"
            if weight == 0:
                step = "set losses.preference, 1.0 in LLaVA-MoD, or preference to none"
            raise ValueError(f"preference is {self.preference!r}, but losses.preference is {weight:g}; {step}")
        return self

    @model_validator(mode="after")
    def _units_of_the_order_are_of_one_kind(self) -> Self:
        if self.in_pairs and self.domain_weights is not None:
            raise ValueError(
                f"preference is {self.preference!r} and domain_weights {self.domain_weights.method!r}, which counts "
                "single samples, not pairs; set preference to none or leave domain_weights out"
            )
        return self

    @model_validator(mode="after")
    def _settings_of_preference_are_used(self) -> Self:
        used = {
            "preference_beta": self.preference in ("dpo", "ipo", "kto_pair"),
            "preference_smoothing": self.preference == "dpo",
            "kto_kl_gradient": self.preference == "kto_pair",
        }
        for name, is_used in used.items():
            if not is_used and (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is {value}, but preference {self.preference!r} has no such setting; remove it"
                )
        if self.preference == "ipo" and self.preference_beta == 0:
            raise ValueError("preference_beta is 0, but preference 'ipo' divides by it; set it above 0, or margin_mse")
        return self

    @model_validator(mode="after")
    def _centres_are_given(self) -> Self:
        weight = self.losses.weights.get("nd")
        if weight is not None and self.centres is None:
            raise ValueError(
                f"losses.nd is {weight}, but centres is not given; write the teacher's class means by `alignkd shards "
                "centres STORE --out FILE` from a store with logits 'hidden', and set centres to that file"
            )
        if weight is None and self.centres is not None:
            raise ValueError(
                f"centres is {self.centres}, but losses.nd is 0, so it is not used; leave centres out or set losses.nd "
                "above 0"
            )
        return self

    @model_validator(mode="after")
    def _validation_has_its_figure(self) -> Self:
        validation = self.validation
        if validation is None or validation.data is not None:
            return self
        if (figure := validation.chosen_figure) not in (LOSS, *self.losses.weights):
            raise ValueError(
                f"validation.figure is {figure!r}, but losses.{figure} is 0, so it is not computed; choose {LOSS} or "
                f"one of {', '.join(self.losses.weights)}"
            )
        return self

    @model_validator(mode="after")
    def _output_is_apart_from_the_extended_run(self) -> Self:
        if self.extend is None:
            return self
        output, run = self.output.resolve(), self.extend.run.resolve()
        if run.is_relative_to(output):
            relation = "is" if output == run else "contains"
            raise ValueError(f"output {self.output} {relation} extend.run {self.extend.run}; choose another output")
        return self

    def optimiser_steps(self, num_samples: int, world_size: int) -> int:
        """`steps`, or the number of steps of `epochs` over so many samples.

        Raises:
            TrainError: as `global_batch_size`.
        """
        if self.epochs is None:
            return self.num_steps
        return math.ceil(samples_of_epochs(self.epochs, num_samples) / self.global_batch_size(world_size))

    def in_steps(self, num_samples: int, world_size: int) -> Self:
        """The same settings with `steps` instead of `epochs`."""
        return self.model_copy(update={"steps": self.optimiser_steps(num_samples, world_size), "epochs": None})

    @property
    def preference_settings(self) -> PreferenceSettings | None:
        """The loss on pairs of answers; None if there is none."""
        if self.preference == "none":
            return None
        return PreferenceSettings(
            loss=self.preference,
            beta=self.preference_beta,
            smoothing=self.preference_smoothing,
            means_have_gradient=self.kto_kl_gradient,
        )

    @property
    def in_pairs(self) -> bool:
        """Whether pairs of answers are drawn as one unit."""
        return self.preference != "none"

    @property
    def offloads(self) -> bool:
        """Whether optimiser state is in host memory."""
        return self.optimizer == "adamw_offload"

    @property
    def frozen_adapters(self) -> bool:
        """Whether adapters are not trained."""
        return self.adapter_learning_rate == 0

    @property
    def num_steps(self) -> int:
        """`steps`, which are given after `in_steps`."""
        assert self.steps is not None
        return self.steps

    def global_batch_size(self, world_size: int) -> int:
        """Samples per optimiser step.

        Raises:
            TrainError: `global_batch` is not a multiple of the samples of one pass over all devices, or with
                `token_budget` of the devices.
        """
        pass_size = (self.micro_batch or 1) * world_size
        if self.global_batch is None:
            return pass_size
        if self.global_batch % pass_size:
            unit = f"{world_size} devices"
            if self.micro_batch is not None:
                unit = f"micro_batch {self.micro_batch} x {unit} = {pass_size}"
            raise TrainError(f"global_batch {self.global_batch} is not a multiple of {unit}; change one of them")
        return self.global_batch

    @property
    def micro_batch_limit(self) -> MicroBatchLimit:
        """`micro_batch` or `token_budget`."""
        return MicroBatchLimit(samples=self.micro_batch, positions=self.token_budget)

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches per device and optimiser step; with `token_budget` their largest possible number."""
        return self.global_batch_size(world_size) // ((self.micro_batch or 1) * world_size)

    def accumulates(self, world_size: int) -> bool:
        """Whether an optimiser step may have more than one micro-batch per device."""
        return self.accumulation_steps(world_size) > 1
