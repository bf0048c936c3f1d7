"""The processes that train together. One process alone needs no launcher; under torchrun the environment decides."""

import atexit
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from student_train.launcher import MeetingPoint, joining, meeting_point


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size`, with its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        summed: list[float] = tensor.tolist()
        return summed

    def from_first(self, value: Any) -> Any:
        """The value that the first rank passed."""
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for every rank."""
        distributed.barrier()


def start_ranks() -> Ranks:
    """Join the process group, once per process.

    Raises:
        TrainError: the launcher's environment cannot be right, or the other processes are not to be found.
    """
    place = meeting_point(os.environ)
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        _join("nccl" if cuda else "gloo", place)
        atexit.register(_leave)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


def _join(backend: str, place: MeetingPoint | None) -> None:
    if place is not None:
        with joining(place):
            distributed.init_process_group(backend)
    else:  # alone: an in-process store needs no port, so two runs on a machine cannot collide
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
