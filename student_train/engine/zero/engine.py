"""DeepSpeed ZeRO-2: for several devices, and for optimiser state on the host; the only module that imports deepspeed.

Settings and their reasons:

* An optimiser of ours as client optimiser and no shared-memory collective: DeepSpeed compiles its own from C++ on first
  use, which takes 25 to 45 s and needs a compiler. Without them, set-up takes about 2 s on a CPU.
* The caller's loss is already divided by the counts of the GLOBAL batch, so DeepSpeed's division by the number of ranks
  is undone, and its division by accumulation steps is switched off.
* State is read and written with DeepSpeed's `safe_get_*` / `safe_set_*` and a few internals of its stage 2 optimiser.
  So its version is bounded in pyproject.toml.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from unittest.mock import patch

import torch
from torch import Tensor, distributed, nn

from alignkd.student_train.distributed.ranks import ACCELERATOR, Ranks, accelerator

if accelerator() == "cpu":
    os.environ[ACCELERATOR] = "cpu"  # read when deepspeed is imported

import deepspeed
from deepspeed.runtime import compiler
from deepspeed.utils import groups, safe_get_full_fp32_param, safe_set_full_fp32_param

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.engine.engine import Engine, ReadTensor, StepOutcome
from alignkd.student_train.engine.loss_scale import OVERFLOWS
from alignkd.student_train.engine.optimizers.adamw import build_optimizer
from alignkd.student_train.engine.optimizers.moments import MomentOptimizer
from alignkd.student_train.engine.parameter_groups import parameter_groups
from alignkd.student_train.engine.pinned_memory import may_pin
from alignkd.student_train.engine.zero.config import zero_config
from alignkd.student_train.engine.zero.fragments import by_partition, fragment_of
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.objective import DistilledStudent

# The state of float16's dynamic loss scaler.
SCALER_STATE = {"cur_scale": float, "cur_iter": int, "last_overflow_iter": int, "cur_hysteresis": int}


class ZeroEngine(Engine):
    """A student under ZeRO-2; arguments as `build_engine`."""

    def __init__(self, student: DistilledStudent, config: TrainConfig, *, dtype: torch.dtype, ranks: Ranks) -> None:
        super().__init__(student, config, ranks)
        _prepare_deepspeed(config.wait_minutes)
        pin_memory = config.offloads and may_pin(ranks.device)
        parameters = parameter_groups(student, config)
        self._peak_rates = [group["lr"] for group in parameters]
        student.to(ranks.device)
        with _keep_buffer_dtypes(student):
            try:
                self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
                    model=student,
                    optimizer=build_optimizer(config.optimizer, parameters, config.weight_decay),
                    config=zero_config(student, config, dtype, ranks.world_size, pin_memory=pin_memory),
                    dist_init_required=False,
                )
            except ValueError as error:
                if "not supported on your device" in str(error):
                    raise TrainError(
                        f"dtype {dtype} is not supported on {ranks.device.type}; set dtype to float32"
                    ) from error
                raise
        self._create_moments()

    def backward(self, loss: Tensor) -> None:
        self._deepspeed.backward(loss * self.ranks.world_size, scale_wrt_gas=False)

    def master_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._trained():
            yield name, safe_get_full_fp32_param(parameter).cpu()

    def moments(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._trained():
            whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=self.ranks.device)
            if (fragment := fragment_of(parameter, self._partitions)) is not None:
                values = self._inner.moment(fragment.flat, kind, fragment.start, fragment.count)
                fragment.of(whole).copy_(values)
            distributed.all_reduce(whole)
            yield name, whole.view(parameter.shape).cpu()

    @property
    def counters(self) -> dict[str, float]:
        scaler = self._optimizer.loss_scaler
        scale = {name: float(getattr(scaler, name)) for name in SCALER_STATE} if scaler.dynamic else {}
        return {"adam_step": self._inner.num_steps, **scale}

    def load_weights(self, read: ReadTensor) -> None:
        for name, parameter in self._trained():
            master = read(name).to(self.ranks.device)
            safe_set_full_fp32_param(parameter, master)
            parameter.data.copy_(master)

    def load_moments(self, kind: str, read: ReadTensor) -> None:
        for flat, fragments in by_partition(self._trained(), self._partitions):
            pieces = ((part.start, part.of(read(name)).to(flat.device)) for name, part in fragments)
            self._inner.set_moment(flat, kind, pieces)

    def load_counters(self, counters: dict[str, float]) -> None:
        self._inner.num_steps = counters["adam_step"]
        if self._optimizer.loss_scaler.dynamic:
            for name in SCALER_STATE.keys() & counters.keys():
                setattr(self._optimizer.loss_scaler, name, SCALER_STATE[name](counters[name]))

    @property
    def _inner(self) -> MomentOptimizer:
        """The optimiser of the flat partitions."""
        found: MomentOptimizer = self._optimizer.optimizer
        return found

    @property
    def _partitions(self) -> list[Tensor]:
        """This rank's float32 master weights, flat, by parameter group."""
        found: list[Tensor] = self._optimizer.single_partition_of_fp32_groups
        return found

    def _forward(self, batch: TrainBatch) -> dict[str, LossSum]:
        self._deepspeed.set_gradient_accumulation_boundary(self._micro_batches_left == 1)
        terms: dict[str, LossSum] = self._deepspeed(batch)
        return terms

    def _end_micro_batch(self, learning_rate_factor: float, *, is_last: bool) -> StepOutcome | None:
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * learning_rate_factor
        with _overflow_as_train_error():
            self._deepspeed.step()
        if not is_last:
            return None
        if self._optimizer.overflow:
            self._drop_gradient_sums()
        return StepOutcome(not self._optimizer.overflow, float(self._deepspeed.get_global_grad_norm()))

    def _drop_gradient_sums(self) -> None:
        """Drop the gradients of a skipped step.

        DeepSpeed 0.19.8 keeps them if the optimiser is offloaded and sums are float32: one gradient that is not finite
        would be part of every later step.
        """
        sums = self._optimizer.averaged_gradients
        sums.update(dict.fromkeys(sums))

    def _create_moments(self) -> None:
        """Create the zeros that the optimiser would create in its first step; a resumed run needs them earlier."""
        for group in self._inner.param_groups:
            self._inner.create_state(group, group["params"])


def _prepare_deepspeed(wait_minutes: float) -> None:
    """Use the running process group, without the C++ collective that only inference needs.

    Args:
        wait_minutes: longest wait in an exchange of gradients. DeepSpeed makes a group of its own for them, with the
            default limit of torch, unless it has one.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("LOCAL_RANK", "0")  # asserted by deepspeed.initialize, also without a launcher
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    if groups._WORLD_GROUP is None:
        groups._WORLD_GROUP = distributed.new_group(timeout=timedelta(minutes=wait_minutes))
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon without `torch.compile`.

    Its ZeRO imports Muon with every optimiser. The decorators of Muon would import torch's compiler, which takes 2 s,
    for functions that AdamW never calls.
    """
    with patch.object(compiler, "compile", lambda: compiler.dummy_decorator):
        import_module("deepspeed.runtime.zero.muon.original_muon")


@contextmanager
def _overflow_as_train_error() -> Iterator[None]:
    """DeepSpeed raises a plain Exception if float16 overflows even with the least loss scale."""
    try:
        yield
    except Exception as error:
        if "loss scale already at minimum" in str(error):
            raise TrainError(OVERFLOWS) from error
        raise


@contextmanager
def _keep_buffer_dtypes(module: nn.Module) -> Iterator[None]:
    """Undo DeepSpeed's cast of buffers to the weights' dtype.

    Rotary frequencies rounded to bfloat16 shift positions by whole units; the teacher's lm_head keeps its own dtype.
    """
    kept = {name: value for name, value in module.named_buffers() if value.is_floating_point()}
    yield
    for name, value in kept.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], value)
