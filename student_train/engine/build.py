"""Chooses the engine of a run."""

import torch

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
from alignkd.student_train.engine.optimizers.adamw_8bit import optimizer_library
from alignkd.student_train.objective.objective import DistilledStudent


def uses_deepspeed(config: TrainConfig, world_size: int) -> bool:
    """Whether a run on so many devices uses DeepSpeed: to divide state among devices, or to keep it on the host."""
    return world_size > 1 or config.offloads


def check_optimizer(config: TrainConfig) -> None:
    """Refuse an optimiser whose library is missing, before anything is loaded.

    Raises:
        InputError: bitsandbytes is needed and does not work here.
    """
    if config.optimizer == "adamw_8bit":
        optimizer_library()


def build_engine(student: DistilledStudent, config: TrainConfig, *, dtype: torch.dtype, ranks: Ranks) -> Engine:
    """The engine of a run, with moments of zero.

    Args:
        student: the module; float32 master weights start from its values as rounded to `dtype`.
        config: optimisation settings.
        dtype: dtype of weights, activations and gradients.
        ranks: this process among all.

    Raises:
        TrainError: the device cannot compute in `dtype`.
        InputError: bitsandbytes is needed and does not work here.
    """
    if not uses_deepspeed(config, ranks.world_size):
        return OneDeviceEngine(student, config, dtype=dtype, ranks=ranks)
    # Importing DeepSpeed takes seconds and memory.
    from alignkd.student_train.engine.zero.engine import ZeroEngine

    return ZeroEngine(student, config, dtype=dtype, ranks=ranks)
