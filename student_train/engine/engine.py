"""DeepSpeed ZeRO-2 behind a few methods; the only module that imports deepspeed.

Settings and their reasons:

* torch's AdamW as client optimiser and no shared-memory collective: DeepSpeed compiles its own from C++ on first use,
  which takes 25 to 45 s and needs a compiler. Without them, set-up takes about 2 s on a CPU.
* The caller's loss is already divided by the counts of the GLOBAL batch, so DeepSpeed's division by the number of ranks
  is undone, and its division by accumulation steps is switched off.
* State is read and written as full float32 tensors per parameter, so a checkpoint contains no pickle and can be loaded
  on any number of ranks. This uses DeepSpeed's `safe_get_*` / `safe_set_*` and a few internals of its stage 2
  optimiser, so its version is bounded in pyproject.toml.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alignkd.student_train.distributed.ranks import ACCELERATOR, Ranks, accelerator

if accelerator() == "cpu":
    os.environ[ACCELERATOR] = "cpu"  # read when deepspeed is imported

import deepspeed
from deepspeed.runtime import compiler
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.engine.dropout import DropoutSeeds
from alignkd.student_train.engine.pinned_memory import may_pin
from alignkd.student_train.engine.zero_config import parameter_groups, zero_config
from alignkd.student_train.errors import TrainError
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.objective import DistilledStudent

MOMENTS = ("exp_avg", "exp_avg_sq")
# The state of float16's dynamic loss scaler.
SCALER_STATE = {"cur_scale": float, "cur_iter": int, "last_overflow_iter": int, "cur_hysteresis": int}


@dataclass(frozen=True)
class StepOutcome:
    """Result of an optimiser step; `applied` is False if the gradient was not finite."""

    applied: bool
    grad_norm: float


class Engine:
    """A student under ZeRO-2.

    Args:
        student: the module; float32 master weights start from its values as rounded to `dtype`.
        config: optimisation settings.
        dtype: dtype of weights, activations and gradients.
        ranks: this process among all.

    Raises:
        TrainError: the accelerator cannot compute in `dtype`.
    """

    def __init__(self, student: DistilledStudent, config: TrainConfig, *, dtype: torch.dtype, ranks: Ranks) -> None:
        _prepare_deepspeed()
        self.student, self.ranks = student, ranks
        pin_memory = config.offload_optimizer and may_pin(ranks.device)
        groups = parameter_groups(student, config)
        self._peak_rates = [group["lr"] for group in groups]
        student.to(ranks.device)
        with _keep_buffer_dtypes(student):
            try:
                self._deepspeed, self._optimizer, _, _ = deepspeed.initialize(
                    model=student,
                    # Fused: the other kernels make copies as large as the master weights, and are slower on a host.
                    optimizer=torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True),
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
        self._seed = config.seed
        self._dropout = DropoutSeeds.of(student, seed=config.seed, rank=ranks.rank)
        self._micro_batches_left = 1

    def start_step(self, step: int, *, micro_batches: int) -> None:
        """Call before the first micro-batch of the optimiser step of this number.

        Args:
            micro_batches: those of the step, the same number on every rank.
        """
        self._micro_batches_left = micro_batches
        self.student.start_step(step, seed=self._seed)
        if self._dropout is not None:
            self._dropout.start_step(step)

    def __call__(self, batch: TrainBatch) -> dict[str, LossSum]:
        """Every loss term of one micro-batch."""
        if self._dropout is not None:
            self._dropout.seed_next()
        self._deepspeed.set_gradient_accumulation_boundary(self._micro_batches_left == 1)
        terms: dict[str, LossSum] = self._deepspeed(batch.to(self.ranks.device))
        return terms

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this micro-batch's share of the global loss."""
        self._deepspeed.backward(loss * self.ranks.world_size, scale_wrt_gas=False)

    def end_micro_batch(self, learning_rate_factor: float) -> StepOutcome | None:
        """Call after every `backward`: the outcome of the optimiser step, or None while accumulating."""
        self._micro_batches_left -= 1
        for group, peak in zip(self._optimizer.param_groups, self._peak_rates, strict=True):
            group["lr"] = peak * learning_rate_factor
        self._deepspeed.step()
        if self._micro_batches_left:
            return None
        self._micro_batches_left = 1
        if self._optimizer.overflow:
            self._drop_gradient_sums()
        return StepOutcome(not self._optimizer.overflow, float(self._deepspeed.get_global_grad_norm()))

    def master_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter in float32 on the host, one after the other; ALL ranks must iterate."""
        for name, parameter in self._trained():
            yield name, safe_get_full_fp32_param(parameter).cpu()

    def moments(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """One of AdamW's moments per trained parameter, float32 on the host; ALL ranks must iterate."""
        for name, parameter in self._trained():
            yield name, safe_get_full_optimizer_state(parameter, kind).cpu()

    @property
    def counters(self) -> dict[str, float]:
        """The optimiser's scalar state: AdamW's step and, in float16, the loss scaler's."""
        step = next(iter(self._optimizer.optimizer.state.values()))["step"]
        scaler = vars(self._optimizer.loss_scaler)
        return {"adam_step": float(step), **{name: float(scaler[name]) for name in SCALER_STATE if name in scaler}}

    def load_weights(self, read: Callable[[str], Tensor]) -> None:
        """Set master weights and computing weights; `read` returns the tensor of a parameter's name."""
        for name, parameter in self._trained():
            master = read(name).to(self.ranks.device)
            safe_set_full_fp32_param(parameter, master)
            parameter.data.copy_(master)

    def load_moments(self, kind: str, read: Callable[[str], Tensor]) -> None:
        """Set one of AdamW's moments of every trained parameter; `read` as in `load_weights`."""
        for name, parameter in self._trained():
            safe_set_full_optimizer_state(parameter, read(name).to(self.ranks.device), kind)

    def load_counters(self, counters: dict[str, float]) -> None:
        """Set the values that `counters` returned."""
        for state in self._optimizer.optimizer.state.values():
            state["step"].fill_(counters["adam_step"])
        for name in SCALER_STATE.keys() & counters.keys():
            setattr(self._optimizer.loss_scaler, name, SCALER_STATE[name](counters[name]))

    def _drop_gradient_sums(self) -> None:
        """Drop the gradients of a skipped step.

        DeepSpeed 0.19.8 keeps them if the optimiser is offloaded and sums are float32: one gradient that is not finite
        would be part of every later step.
        """
        sums = self._optimizer.averaged_gradients
        sums.update(dict.fromkeys(sums))

    def _create_moments(self) -> None:
        """Create the zeros that AdamW would create in its first step.

        A resumed run needs them earlier. Also, if AdamW creates them and there are several parameter groups, DeepSpeed
        links only the first group's moments to their parameters.
        """
        inner = self._optimizer.optimizer
        for flat in self._optimizer.single_partition_of_fp32_groups:
            # The fused kernel requires `step` on the device of the parameter.
            step = torch.zeros((), dtype=torch.float32, device=flat.device)
            inner.state[flat] = {"step": step, **{kind: torch.zeros_like(flat) for kind in MOMENTS}}
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.student.named_parameters() if value.requires_grad)


def _prepare_deepspeed() -> None:
    """Use the running process group, without the C++ collective that only inference needs."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    os.environ.setdefault("LOCAL_RANK", "0")  # asserted by deepspeed.initialize, also without a launcher
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon_uncompiled()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon without `torch.compile`.

    Its ZeRO imports Muon with every optimiser. The decorators of Muon would import torch's compiler, which takes 2 s,
    for functions that AdamW never calls.
    """
    with patch.object(compiler, "compile", lambda: compiler.dummy_decorator):
        import_module("deepspeed.runtime.zero.muon.original_muon")


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
