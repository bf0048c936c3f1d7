"""The processes that train together: a single one, or as many as the launcher's environment gives."""

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import distributed

from alignkd.student_train.distributed.launcher import DEEPSPEED, TORCHRUN, MeetingPoint, joining, meeting_point
from alignkd.student_train.errors import TrainError
from alignkd.vlm.hardware.devices import keep_float32_exact, local_cuda_index

T = TypeVar("T")
# DeepSpeed reads this variable when it is imported, so `engine/zero/engine.py` sets it; the user's value is kept here.
ACCELERATOR = "DS_ACCELERATOR"
REQUESTED_ACCELERATOR = os.environ.get(ACCELERATOR)


@dataclass(frozen=True)
class Ranks:
    """Rank and device of this process among `world_size`."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        if self.world_size == 1:  # nothing to wait for
            return [*map(float, values)]
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        summed: list[float] = tensor.tolist()
        return summed

    def from_first(self, value: Any) -> Any:
        """The value that the first rank passed."""
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def on_first(self, function: Callable[[], T]) -> T:
        """The result of `function` on the first rank; called by ALL ranks.

        All ranks raise an error of the first one: otherwise they would wait for it.

        Raises:
            ValueError: on the first rank, as `function`; on the others a TrainError with the same text.
        """
        result: Any = None
        problem: ValueError | None = None
        if self.is_first:
            try:
                result = function()
            except ValueError as error:
                problem = error
        result, text = self.from_first((result, None if problem is None else str(problem)))
        if problem is not None:
            raise problem
        if text is not None:
            raise TrainError(text)
        found: T = result
        return found

    def from_all(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order."""
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        distributed.barrier()


def start_ranks() -> Ranks:
    """Join the process group, once per process.

    Raises:
        TrainError, InputError: the launcher's environment is wrong, the other processes cannot be found, or there is no
            device for this process.
    """
    place = meeting_point(os.environ)
    device = training_device()
    keep_float32_exact()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        _join("nccl" if device.type == "cuda" else "gloo", place)
        atexit.register(_leave)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


def accelerator() -> Literal["cpu", "cuda"]:
    """The kind of device that training uses: a GPU if there is one and DS_ACCELERATOR is not `cpu`, else the CPU.

    DeepSpeed reads the same variable, so both use the same device.

    Raises:
        TrainError: DS_ACCELERATOR names an accelerator that is missing or not supported.
    """
    asked, has_cuda = REQUESTED_ACCELERATOR, torch.cuda.is_available()
    if asked not in (None, "cpu", "cuda"):
        raise TrainError(f"{ACCELERATOR} is {asked!r}, training runs on 'cuda' or 'cpu'; unset {ACCELERATOR}")
    if asked == "cuda" and not has_cuda:
        raise TrainError(f"{ACCELERATOR} is 'cuda', but torch cannot use CUDA here; unset {ACCELERATOR}")
    return "cuda" if has_cuda and asked != "cpu" else "cpu"


def training_device() -> torch.device:
    """The device of this process.

    Raises:
        TrainError: as `accelerator`.
        InputError: there are more processes than GPUs.
    """
    if accelerator() == "cpu":
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    own_launcher = TORCHRUN in os.environ or DEEPSPEED in os.environ
    visible = torch.cuda.device_count()
    return torch.device("cuda", local_cuda_index(local_rank, visible=visible, own_launcher=own_launcher))


def _join(backend: str, place: MeetingPoint | None) -> None:
    if place is not None:
        with joining(place):
            distributed.init_process_group(backend)
    else:  # an in-process store needs no port, so two runs on a machine cannot collide
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
