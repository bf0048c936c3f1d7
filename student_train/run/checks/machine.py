"""What a training needs of the machine, apart from memory: `alignkd run` asks it before the teacher runs.

The teacher may take days. The training itself refuses the same, each where it is used.
"""

import torch

from alignkd.student_train.engine.build import check_optimizer
from alignkd.student_train.engine.determinism import check_workspaces
from alignkd.student_train.engine.one_device.engine import check_device_computes_in
from alignkd.student_train.job import TrainJob
from alignkd.student_train.metrics.trackers.installed import check_installed
from alignkd.vlm.kernels.choice import check_kernels_installed


def check_machine(job: TrainJob, *, device_type: str, processes: int) -> None:
    """Refuse settings that cannot work here. CUDA is not started, so no memory of a GPU is taken.

    Args:
        device_type: `cpu` or `cuda`, where the student is trained.
        processes: number of devices that train together.

    Raises:
        ValueError: one line: a library is missing, the device cannot compute in the student's dtype or with the chosen
            kernels, CUBLAS_WORKSPACE_CONFIG does not suit `train.deterministic`, or the global batch cannot be divided.
    """
    config = job.train
    check_optimizer(config)
    check_installed(config.report_to)
    check_kernels_installed(config.kernels, device_type)
    check_device_computes_in(job.torch_dtype, torch.device(device_type))
    if config.deterministic and device_type == "cuda":
        check_workspaces()
    config.global_batch_size(processes)
