"""Environment variables of launchers (torchrun, deepspeed), checked before they are used."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignkd.student_train.errors import TrainError

logger = logging.getLogger(__name__)
SECONDS_UNTIL_NOTICE = 5.0
# If ranks are started one by one, the host name of the first one may appear late.
SECONDS_FOR_A_NAME = 60.0
# Variables that only these launchers set; the launcher is the parent process.
TORCHRUN, DEEPSPEED = "TORCHELASTIC_RUN_ID", "CROSS_SIZE"
_UNSET = "unset them to train in a single process, or start with torchrun or deepspeed"


@dataclass(frozen=True, kw_only=True)
class MeetingPoint:
    """Rank of this process and the address at which all processes meet."""

    rank: int
    world_size: int
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def meeting_point(environment: Mapping[str, str]) -> MeetingPoint | None:
    """Where to meet the other ranks; None for a single process, with or without a launcher.

    Raises:
        TrainError: variables are wrong or incomplete; the message names all of them.
    """
    local = environment.get("LOCAL_RANK", "0")
    if _number(local) is None:
        raise TrainError(f"LOCAL_RANK={local} in the environment, expected a number from 0; {_UNSET}")
    found = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if name in environment}
    if not found:
        return None
    where = " ".join(f"{name}={value}" for name, value in found.items())
    if len(found) == 1:
        missing = "WORLD_SIZE" if "RANK" in found else "RANK"
        raise TrainError(f"{where} in the environment, but no {missing}: left by a launcher? {_UNSET}")
    rank, world_size = _number(found["RANK"]), _number(found["WORLD_SIZE"])
    if rank is None or world_size is None or rank >= world_size:
        raise TrainError(f"{where} in the environment, expected numbers with 0 <= RANK < WORLD_SIZE; {_UNSET}")
    if world_size == 1:
        return None
    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if not host or not 0 < (_number(port) or 0) < 1 << 16:
        raise TrainError(
            f"{where} MASTER_ADDR={host} MASTER_PORT={port} in the environment, expected the host of rank 0 and a port "
            f"that is free there; {_UNSET}"
        )
    return MeetingPoint(rank=rank, world_size=world_size, host=host, port=int(port))


@contextmanager
def joining(place: MeetingPoint) -> Iterator[None]:
    """Wraps the call that waits for the other ranks: logs that it waits, and turns its errors into one line.

    Raises:
        TrainError: the host name is unknown, its port is in use, or the other ranks did not connect.
    """
    who = f"rank {place.rank}: " if place.rank else ""
    waiting = f"{who}waiting for {place.world_size} processes at {place} (MASTER_ADDR, MASTER_PORT)"
    timer = threading.Timer(SECONDS_UNTIL_NOTICE, logger.info, [waiting])
    timer.daemon = True
    timer.start()
    try:
        _find(place)
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, TrainError):
            raise
        raise TrainError(_reason(place, str(error))) from error
    finally:
        timer.cancel()


class LauncherWatch:
    """Notices that the launcher of this process has died, as DeepSpeed's does on SIGTERM.

    DeepSpeed does not pass the signal on (DeepSpeed#4098). torchrun is the parent of this process. DeepSpeed's command
    starts another process on each machine, which outlives it and starts the ranks. With several machines the command
    may run on another one.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._parent = self._grandparent = None
        if TORCHRUN in environment or DEEPSPEED in environment:
            self._parent = os.getppid()
            if environment.get(DEEPSPEED) == "1":
                self._grandparent = _parent_of(self._parent)

    def is_gone(self) -> bool:
        """Whether the launcher died after this object was created; cheap enough for every step."""
        if self._parent is None:
            return False
        return os.getppid() != self._parent or _is_other(self._grandparent, _parent_of(self._parent))


def _is_other(before: int | None, now: int | None) -> bool:
    return before is not None and before != now


def _parent_of(process: int) -> int | None:
    """Parent process id, Linux only; the name in the second field may contain blanks and parentheses."""
    try:
        return int(
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        )
    except (OSError, ValueError, IndexError):
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _find(place: MeetingPoint) -> None:
    until = time.monotonic() + SECONDS_FOR_A_NAME
    while True:
        try:
            socket.getaddrinfo(place.host, place.port)
        except OSError as error:
            if time.monotonic() >= until:
                raise TrainError(
                    f"MASTER_ADDR={place.host}: no such host ({error.strerror}); set it to the name or address of the "
                    "machine of rank 0"
                ) from error
            time.sleep(1)
        else:
            return


def _reason(place: MeetingPoint, error: str) -> str:
    if "EADDRINUSE" in error or "address already in use" in error.lower():
        return (
            f"MASTER_PORT={place.port} is in use on this machine; choose a free port, or stop the process that uses it"
        )
    shown = " ".join(error.split())[:160]
    met = f"rank {place.rank} did not meet the {place.world_size} processes at {place} ({shown})"
    if "connectFullMesh" in error or "NCCL" in error:  # they have met there, but cannot connect to each other
        return (
            f"{met}; let every machine reach the others: set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME to the interface "
            "that connects them, and open their ports"
        )
    return f"{met}; start all of them with the same MASTER_ADDR and MASTER_PORT"
