"""Training on one device in plain torch.

Compared with ZeRO-2 on one device there are no flat copies of weights and gradients, no buckets, and one wait for the
device per step instead of several: for the norm, which decides whether the step is applied.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.engine import Engine, ReadTensor, StepOutcome
from alignkd.student_train.engine.loss_scale import LossScale
from alignkd.student_train.engine.one_device.gradients import Gradients
from alignkd.student_train.engine.one_device.masters import Masters
from alignkd.student_train.engine.optimizers.adamw import build_optimizer
from alignkd.student_train.engine.parameter_groups import parameter_groups
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.objective import DistilledStudent

# Weights that are updated at a time: AdamW reads float32 copies of 16-bit weights, and of gradients without a sum.
ELEMENTS_AT_ONCE = 1 << 24
# DeepSpeed's term against a division by zero, in the factor of clipping.
CLIP_EPSILON = 1e-6


class OneDeviceEngine(Engine):
    """A student whose weights, gradients and optimiser state are on one device; arguments as `build_engine`."""

    def __init__(self, student: DistilledStudent, config: TrainConfig, *, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__(student, config, ranks)
        check_device_computes_in(dtype, ranks.device)
        student.to(ranks.device)
        cast_parameters(student, dtype)
        groups = parameter_groups(student, config)
        self._peak_rates = [group["lr"] for group in groups]
        self._weights: list[list[nn.Parameter]] = [group["params"] for group in groups]
        every = [weight for weights in self._weights for weight in weights]
        self._masters = Masters(every)
        held = [{**group, "params": list(map(self._masters.holder, group["params"]))} for group in groups]
        self._optimizer = build_optimizer(config.optimizer, held, config.weight_decay)
        self._create_state()
        self._gradients = Gradients(every, in_float32=config.float32_gradients)
        self._clip = config.gradient_clip
        self._scale = LossScale() if dtype == torch.float16 else None

    def start_step(self, step: int, *, micro_batches: int) -> None:
        super().start_step(step, micro_batches=micro_batches)
        self._gradients.start_step(micro_batches)

    def backward(self, loss: Tensor) -> None:
        (loss if self._scale is None else loss * self._scale.cur_scale).backward()

    def master_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._trained():
            yield name, self._masters.values(weight).to("cpu", copy=True)

    def moments(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._trained():
            values = self._optimizer.moment(self._masters.holder(weight), kind, 0, weight.numel())
            yield name, values.view(weight.shape).to("cpu", copy=True)

    @property
    def counters(self) -> dict[str, float]:
        scale = {} if self._scale is None else self._scale.counters
        return {"adam_step": self._optimizer.num_steps, **scale}

    def load_weights(self, read: ReadTensor) -> None:
        for name, weight in self._trained():
            self._masters.set(weight, read(name))

    @torch.no_grad()
    def load_moments(self, kind: str, read: ReadTensor) -> None:
        for name, weight in self._trained():
            values = read(name).reshape(-1).to(self.ranks.device)
            self._optimizer.set_moment(self._masters.holder(weight), kind, [(0, values)])

    def load_counters(self, counters: dict[str, float]) -> None:
        self._optimizer.num_steps = counters["adam_step"]
        if self._scale is not None:
            self._scale.load(counters)

    def _forward(self, batch: TrainBatch) -> dict[str, LossSum]:
        terms: dict[str, LossSum] = self.student(batch)
        return terms

    def _end_micro_batch(self, learning_rate_factor: float, *, is_last: bool) -> StepOutcome | None:
        if not is_last:
            return None
        scale = 1.0 if self._scale is None else self._scale.cur_scale
        norm = self._gradients.norm().item() / scale
        applied = math.isfinite(norm)
        if self._scale is not None:
            self._scale.update(overflow=not applied)
        if applied:
            clip = max(1.0, (norm + CLIP_EPSILON) / self._clip) if self._clip else 1.0
            self._update(learning_rate_factor, gradient_factor=1.0 / (clip * scale))
        self._gradients.end_step()
        return StepOutcome(applied, norm if applied else math.inf)

    @torch.no_grad()
    def _update(self, learning_rate_factor: float, *, gradient_factor: float) -> None:
        """One step of the optimiser, part by part."""
        groups = zip(self._optimizer.param_groups, self._weights, self._peak_rates, strict=True)
        for group, weights, peak in groups:
            group["lr"] = peak * learning_rate_factor
            for part in _parts(weights):
                self._update_part(group, part, gradient_factor)

    def _update_part(self, group: dict[str, Any], weights: Sequence[nn.Parameter], gradient_factor: float) -> None:
        holders = [self._masters.holder(weight) for weight in weights]
        for weight, holder in zip(weights, holders, strict=True):
            self._masters.open(weight)
            holder.grad = self._gradients.of(weight).float()
            if gradient_factor != 1.0:
                holder.grad.mul_(gradient_factor)
        self._optimizer.update(group, holders)
        for weight, holder in zip(weights, holders, strict=True):
            holder.grad = None
            self._gradients.drop(weight)
            self._masters.close(weight)

    def _create_state(self) -> None:
        for group, weights in zip(self._optimizer.param_groups, self._weights, strict=True):
            for weight, holder in zip(weights, group["params"], strict=True):
                self._masters.open(weight)
                self._optimizer.create_state(group, [holder])
                self._masters.close(weight)


def check_device_computes_in(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse float16 on a CPU.

    Raises:
        TrainError: the device cannot compute in `dtype`.
    """
    if dtype == torch.float16 and device.type == "cpu":
        raise TrainError(f"dtype {dtype} is not supported on {device.type}; set dtype to float32")


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters that are floating point, and no buffers.

    Rotary frequencies rounded to bfloat16 shift positions by whole units; the teacher's lm_head keeps its own dtype.
    """
    for value in module.parameters():
        if value.is_floating_point() and value.dtype != dtype:
            value.data = value.data.to(dtype)


def _parts(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Weights in their order: together at most ELEMENTS_AT_ONCE values, or a single larger one."""
    part: list[nn.Parameter] = []
    for weight in weights:
        if part and sum(value.numel() for value in part) + weight.numel() > ELEMENTS_AT_ONCE:
            yield part
            part = []
        part.append(weight)
    if part:
        yield part
