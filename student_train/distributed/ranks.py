"""The processes that train together: a single one, or as many as the launcher's environment gives."""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import distributed

from alignkd.student_train.distributed.launcher import DEEPSPEED, TORCHRUN, MeetingPoint, joining, meeting_point
from alignkd.student_train.distributed.meeting import meet
from alignkd.student_train.distributed.own_address import check_own_address
from alignkd.student_train.distributed.watch import SILENCE_SECONDS, RankWatch, is_lost_connection
from alignkd.student_train.errors import TrainError
from alignkd.vlm.hardware.devices import keep_float32_exact, local_cuda_index

T = TypeVar("T")
# DeepSpeed reads this variable when it is imported, so `engine/zero/engine.py` sets it; the user's value is kept here.
ACCELERATOR = "DS_ACCELERATOR"
REQUESTED_ACCELERATOR = os.environ.get(ACCELERATOR)
WAIT_SECONDS = 1800.0


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


def start_ranks(wait_seconds: float = WAIT_SECONDS) -> Ranks:
    """Join the process group, once per process.

    Args:
        wait_seconds: longest wait of a process for the others, here and in every exchange.

    Raises:
        TrainError, InputError: the launcher's environment is wrong, the other processes cannot be found, or there is no
            device for this process.
    """
    place = meeting_point(os.environ)
    keep_float32_exact()
    if distributed.is_initialized():
        device = _used_device()
    else:
        device = _join_alone() if place is None else _join(place, timedelta(seconds=wait_seconds))
        atexit.register(_leave)
    return Ranks(distributed.get_rank(), distributed.get_world_size(), device)


@contextmanager
def ending_together() -> Iterator[None]:
    """While entered, a rank that ends with an error tells the others, and all end in one line; see `RankWatch`.

    Raises:
        TrainError: the connection to another rank was lost.
    """
    try:
        with _telling_the_others():
            yield
    finally:
        if _watch is not None:
            _watch.end_run()


@contextmanager
def _telling_the_others() -> Iterator[None]:
    """As `ending_together`, for a part of a run."""
    if _watch is None:
        yield
        return
    _watch.is_on = True
    try:
        yield
    except BaseException as error:
        if is_lost_connection(error):
            _watch.is_lost = True
            raise TrainError(_watch.reason_of_loss(error)) from error
        _watch.report(error)
        raise
    finally:
        _watch.is_on = False


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


_watch: RankWatch | None = None


def _join(place: MeetingPoint, wait: timedelta) -> torch.device:
    """Meet the other ranks; the device of this one."""
    global _watch
    with joining(place):
        store, rank, world_size = next(distributed.rendezvous("env://", timeout=wait))  # type: ignore[attr-defined]
        store.set_timeout(wait)
        met = meet(store, rank, world_size, seconds=wait.total_seconds())
        silence = min(SILENCE_SECONDS, wait.total_seconds())
        _watch = RankWatch(met.store, rank, world_size, place=place, silence=silence)
        _watch.start()
    with _telling_the_others():  # from here on, a rank that cannot go on tells the others
        device = _used_device()
        with joining(place):
            backend = "nccl" if device.type == "cuda" else "gloo"
            if backend == "gloo" and len({*met.hosts}) > 1:
                check_own_address(os.environ)
            distributed.init_process_group(backend, store=met.store, rank=rank, world_size=world_size, timeout=wait)
    return device


def _join_alone() -> torch.device:
    """A process group of this process: an in-process store needs no port, so two runs on a machine cannot collide."""
    device = _used_device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return device


def _used_device() -> torch.device:
    device = training_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _leave() -> None:
    if _watch is not None and _watch.is_lost:  # a farewell to a rank that is gone may wait for it
        return
    if distributed.is_initialized():
        distributed.destroy_process_group()
