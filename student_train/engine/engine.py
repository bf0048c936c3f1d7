"""The interface of a training to its weights, gradients and optimiser; `build.py` chooses the implementation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.dropout import DropoutSeeds
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.objective import DistilledStudent

ReadTensor: TypeAlias = Callable[[str], Tensor]


@dataclass(frozen=True)
class StepOutcome:
    """Result of an optimiser step; `applied` is False if the gradient was not finite."""

    applied: bool
    grad_norm: float


class Engine(ABC):
    """A student in training on the devices of all ranks.

    Weights, activations and gradients of a micro-batch have the dtype of the run, master weights and moments float32.
    State is read and written as full float32 tensors per parameter, so a checkpoint contains no pickle and can be
    loaded by any implementation on any number of ranks.

    Attributes:
        student: the module.
        ranks: this process among all.
        optimizer: the setting `optimizer` of the run.
    """

    def __init__(self, student: DistilledStudent, config: TrainConfig, ranks: Ranks) -> None:
        self.student, self.ranks, self.optimizer = student, ranks, config.optimizer
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
        return self._forward(batch.to(self.ranks.device))

    def end_micro_batch(self, learning_rate_factor: float) -> StepOutcome | None:
        """Call after every `backward`: the outcome of the optimiser step, or None while accumulating."""
        self._micro_batches_left -= 1
        is_last = self._micro_batches_left == 0
        outcome = self._end_micro_batch(learning_rate_factor, is_last=is_last)
        if is_last:
            self._micro_batches_left = 1
        return outcome

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this micro-batch's share of the global loss."""

    @abstractmethod
    def master_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter in float32 on the host, one after the other; ALL ranks must iterate."""

    @abstractmethod
    def moments(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """One of AdamW's moments per trained parameter, float32 on the host; ALL ranks must iterate.

        Moments that are kept in 8 bits give the values that their codes stand for.
        """

    @property
    @abstractmethod
    def counters(self) -> dict[str, float]:
        """The optimiser's scalar state: AdamW's step and, in float16, the loss scaler's."""

    @abstractmethod
    def load_weights(self, read: ReadTensor) -> None:
        """Set master weights and computing weights; `read` returns the tensor of a parameter's name."""

    @abstractmethod
    def load_moments(self, kind: str, read: ReadTensor) -> None:
        """Set one of AdamW's moments of every trained parameter; `read` as in `load_weights`.

        Values that `moments` returned give the same codes again where the parameters are divided into blocks in the
        same way. Other values are rounded if moments are kept in 8 bits.
        """

    @abstractmethod
    def load_counters(self, counters: dict[str, float]) -> None:
        """Set the values that `counters` returned; those of a loss scaler that this run does not have are ignored."""

    @abstractmethod
    def _forward(self, batch: TrainBatch) -> dict[str, LossSum]:
        """The terms of a micro-batch that is on the device."""

    @abstractmethod
    def _end_micro_batch(self, learning_rate_factor: float, *, is_last: bool) -> StepOutcome | None:
        """The optimiser step after the last micro-batch; None after any other."""

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.student.named_parameters() if value.requires_grad)
