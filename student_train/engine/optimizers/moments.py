"""What the engines need of an optimiser in addition to `torch.optim.Optimizer`: its moments as float32 values."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# Names of AdamW's moments in its state and in checkpoints.
MOMENTS = ("exp_avg", "exp_avg_sq")
Pieces = Iterable[tuple[int, Tensor]]


class MomentOptimizer(Optimizer, ABC):
    """AdamW whose moments exist before the first step and can be read and set as float32 values.

    The values of a moment have the order of the parameter's values in memory.
    """

    def update(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """The optimiser step of some parameters of a group, from their `grad`."""
        every, self.param_groups = self.param_groups, [{**group, "params": parameters}]
        try:
            self.step()
        finally:
            self.param_groups = every

    @abstractmethod
    def create_state(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Set step and moments of some parameters of a group to zero.

        A resumed run needs them before the first step.
        """

    @abstractmethod
    def moment(self, parameter: Tensor, kind: str, start: int, count: int) -> Tensor:
        """`count` values of a moment from `start` on, float32 [count]."""

    @abstractmethod
    def set_moment(self, parameter: Tensor, kind: str, pieces: Pieces) -> None:
        """Set values of a moment.

        Args:
            pieces: start and float32 values, in ascending order of the starts.
        """

    @property
    def num_steps(self) -> float:
        """Steps that were done."""
        return float(next(iter(self.state.values()))["step"])

    @num_steps.setter
    def num_steps(self, steps: float) -> None:
        self._set_num_steps(steps)

    @abstractmethod
    def _set_num_steps(self, steps: float) -> None:
        """Set the state `step` of every parameter."""
