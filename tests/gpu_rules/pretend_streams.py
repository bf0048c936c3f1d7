"""Streams, events and page-locked memory of the pretend device: the module that torch knows it by.

The strictest device there can be: a copy that the host does not wait for delivers nothing before `Event.synchronize`.
Until then its memory holds bytes of 255, which are NaN in every float format.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from places import Place, current_place
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_HERE = threading.local()
_ARRIVING = threading.Lock()
_work = [0]
_locked: dict[int, StorageWeakRef] = {}


class RaceError(RuntimeError):
    """A copy that need not have the values it should have."""


def queue_work() -> None:
    """An operation was queued; what other streams do needs no order among themselves."""
    if isinstance(current_stream(), _MainStream):
        _work[0] += 1


class Event:
    """A point in a stream: what the stream had in flight, and how much work of the main stream came before."""

    def __init__(self, copies: "tuple[_Copy, ...]" = (), work: int = 0) -> None:
        self._copies, self.work = copies, work

    def synchronize(self) -> None:
        """Wait: everything in flight arrives.

        Raises:
            RaceError: the source of a copy was freed or written over before.
        """
        for copy in self._copies:
            copy.arrive()


class Stream:
    """A stream beside the main one."""

    def __init__(self, device: object = None) -> None:
        self._in_flight: list[_Copy] = []
        self.seen = 0

    def wait_event(self, event: Event) -> None:
        """What is queued from here on comes after the event."""
        self.seen = max(self.seen, event.work)

    def record_event(self) -> Event:
        """The point behind everything queued so far."""
        return Event(self._still_in_flight(), self.seen)

    def add(self, copy: "_Copy") -> None:
        """Queue a copy.

        Raises:
            RaceError: the stream need not wait for the work that makes the source.
        """
        if self.seen < _work[0]:
            raise RaceError(f"copy before the work queued so far is done at {current_place()}")
        self._in_flight.append(copy)

    def _still_in_flight(self) -> "tuple[_Copy, ...]":
        self._in_flight = [copy for copy in self._in_flight if not copy.has_arrived]
        return tuple(self._in_flight)


class _MainStream(Stream):
    def record_event(self) -> Event:
        return Event(self._still_in_flight(), _work[0])

    def add(self, copy: "_Copy") -> None:
        self._in_flight.append(copy)


@dataclass
class _Copy:
    """A copy in flight; the source is not kept."""

    into: Tensor
    storage: StorageWeakRef
    layout: tuple[Any, ...]
    expected: Tensor
    place: Place
    has_arrived: bool = False

    def arrive(self) -> None:
        """Deliver; from any thread."""
        with _ARRIVING:
            if not self.has_arrived:
                self._deliver()
                self.has_arrived = True

    def _deliver(self) -> None:
        if self.storage.expired():
            raise RaceError(f"source freed before the copy of {self.place} ended")
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        now = torch.empty(0, dtype=self.expected.dtype).set_(storage, *self.layout)
        if not torch.equal(_bits(now), _bits(self.expected)):
            raise RaceError(f"source written over before the copy of {self.place} ended")
        self.into.copy_(self.expected)


def copy_later(into: Tensor, source: Tensor, *, keep: bool = False) -> Tensor:
    """`into`, which holds `source` once an event behind the copy was waited for; `keep` is of a source made for it."""
    into.untyped_storage().fill_(255)
    layout = (source.storage_offset(), source.size(), source.stride())
    copy = _Copy(into, StorageWeakRef(source.untyped_storage()), layout, source.clone(), current_place())
    current_stream().add(copy)
    if keep:
        into._source = source  # type: ignore[attr-defined]
    return into


def page_lock(tensor: Tensor) -> Tensor:
    """Mark memory of the host as page-locked, whatever tensors share it."""
    storage = tensor.untyped_storage()
    _locked[storage._cdata] = StorageWeakRef(storage)
    return tensor


def is_page_locked(tensor: Tensor) -> bool:
    """Whether the device copies from and to this tensor by itself."""
    found = _locked.get(tensor.untyped_storage()._cdata)
    return found is not None and not found.expired()


def current_stream(device: object = None) -> Stream:
    """The stream that this thread queues on."""
    if not hasattr(_HERE, "stream"):
        _HERE.stream = _MainStream()
    return _HERE.stream  # type: ignore[no-any-return]


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    """Queue on another stream."""
    before, _HERE.stream = current_stream(), chosen
    try:
        yield
    finally:
        _HERE.stream = before


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.new_zeros(0, dtype=torch.uint8)


def is_initialized() -> bool:
    """Asked by torch."""
    return True


def is_available() -> bool:
    """Asked by torch."""
    return True


def current_device() -> int:
    """Asked by torch."""
    return 0


def device_count() -> int:
    """Asked by torch."""
    return 1


def manual_seed_all(seed: int) -> None:
    """Asked by torch."""


def _is_in_bad_fork() -> bool:
    return False


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Asked by torch's checkpointing."""
    return [torch.bfloat16, torch.float16]
