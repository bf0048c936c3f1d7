"""DeepSpeed's settings, as plain data."""

from typing import Any

import torch

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.objective import DistilledStudent

# Elements per reduction bucket: DeepSpeed allocates whole buckets, and its default takes 1 GB in bfloat16.
MAX_BUCKET = 50_000_000


def zero_config(
    student: DistilledStudent, config: TrainConfig, dtype: torch.dtype, world_size: int, *, pin_memory: bool
) -> dict[str, Any]:
    """The DeepSpeed configuration of ZeRO-2 for this run.

    Args:
        pin_memory: page-lock offloaded state, which makes copies faster.
    """
    trained = sum(value.numel() for value in student.parameters() if value.requires_grad)
    bucket = min(MAX_BUCKET, trained)
    zero: dict[str, Any] = {"stage": 2, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if config.offloads:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin_memory}
    settings: dict[str, Any] = {
        # For DeepSpeed's own reports. The trainer decides which micro-batch is the last one of a step.
        "train_micro_batch_size_per_gpu": config.micro_batch or 1,
        "gradient_accumulation_steps": config.accumulation_steps(world_size),
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # tested here, in tests/student_train
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own has to be compiled
    }
    if dtype == torch.bfloat16:
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif dtype == torch.float16:
        settings["fp16"] = {"enabled": True}
    if sums_in_float32(config.float32_gradients, dtype, config.offloads, config.accumulates(world_size)):
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def sums_in_float32(wanted: bool, dtype: torch.dtype, offload: bool, accumulates: bool) -> bool:
    """Whether DeepSpeed adds up gradients in one flat float32 buffer on the device (0.19.8, ZeRO-2).

    Without offloading this also helps for a single micro-batch: otherwise DeepSpeed flattens the gradients and copies
    them to float32, which takes twice as much memory. With offloading a single gradient is sent to the host at once and
    needs no sum.
    """
    return wanted and dtype != torch.float32 and (accumulates or not offload)
