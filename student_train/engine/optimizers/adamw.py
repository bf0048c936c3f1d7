"""torch's AdamW, and the choice of the optimiser by name."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignkd.student_train.config import OptimizerName
from alignkd.student_train.engine.optimizers.adamw_8bit import AdamW8bit
from alignkd.student_train.engine.optimizers.moments import MOMENTS, MomentOptimizer, Pieces


def build_optimizer(name: OptimizerName, groups: list[dict[str, Any]], weight_decay: float) -> MomentOptimizer:
    """The optimiser of this name, without state.

    Args:
        groups: as `parameter_groups` returns them; `params` may be any float32 tensors.

    Raises:
        InputError: bitsandbytes is needed and does not work here.
    """
    if name != "adamw_8bit":
        return FusedAdamW(groups, weight_decay)
    return AdamW8bit(groups, weight_decay)


class FusedAdamW(torch.optim.AdamW, MomentOptimizer):
    """torch's AdamW with its fused kernel: the others make copies as large as the weights, and are slower on a host."""

    def __init__(self, groups: list[dict[str, Any]], weight_decay: float) -> None:
        super().__init__(groups, weight_decay=weight_decay, fused=True)

    def create_state(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        for parameter in parameters:
            # The fused kernel requires `step` on the device of the parameter.
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            self.state[parameter] = {"step": step, **{kind: torch.zeros_like(parameter) for kind in MOMENTS}}

    def moment(self, parameter: Tensor, kind: str, start: int, count: int) -> Tensor:
        values: Tensor = self.state[parameter][kind].view(-1)
        return values[start : start + count]

    def set_moment(self, parameter: Tensor, kind: str, pieces: Pieces) -> None:
        values = self.state[parameter][kind].view(-1)
        for start, piece in pieces:
            values[start : start + len(piece)].copy_(piece)

    def _set_num_steps(self, steps: float) -> None:
        for state in self.state.values():
            state["step"].fill_(steps)
