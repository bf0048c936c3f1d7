"""The pretend device as DeepSpeed's accelerator, so that `student_train/engine/zero/engine.py` runs as it is."""

from typing import Any

import torch
from deepspeed.accelerator import set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from pretend_device import NAME, is_ours


class PretendAccelerator(CPU_Accelerator):  # type: ignore[misc]
    """One device; its streams are not DeepSpeed's business, so it counts as one that does all in order."""

    def device_name(self, device_index: int | None = None) -> str:
        """Asked for `torch.device`."""
        return NAME

    def current_device_name(self) -> str:
        """Asked for `torch.device`."""
        return NAME

    def current_device(self) -> int:
        """The only one."""
        return 0

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is on the device."""
        return is_ours(tensor)

    @property
    def FloatTensor(self) -> Any:
        """DeepSpeed's way to put numbers onto the device."""
        return lambda numbers: torch.tensor(numbers, dtype=torch.float32, device=NAME)

    @property
    def ByteTensor(self) -> Any:
        """DeepSpeed's way to put numbers onto the device."""
        return lambda numbers: torch.tensor(numbers, dtype=torch.uint8, device=NAME)


def use_pretend_accelerator() -> None:
    """For all of this process; before an engine is made."""
    set_accelerator(PretendAccelerator())
