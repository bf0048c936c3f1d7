"""Which process trains into an output folder, from its lock file; loads no torch."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

LOCK = "run.lock"
# `unknown`: the file system has no locks, or the file cannot be opened
LockState = Literal["free", "held", "unknown"]


@contextmanager
def no_training_starts(output: Path) -> Iterator[LockState]:
    """Whether a process trains into `output`; while the block runs, none can start if the state is `free`.

    Any number of processes may be in such a block at once. Nothing is written. A folder without a lock file (of an
    earlier version) is `free`.
    """
    try:
        descriptor = os.open(output / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield "free"
        return
    except OSError:
        yield "unknown"
        return
    try:
        yield _shared_lock(descriptor)
    finally:
        os.close(descriptor)


def holder_of(output: Path) -> dict[str, Any] | None:
    """`host`, `pid` and `since` (ISO 8601) of the last process that held the lock; None if the file has none."""
    try:
        document = json.loads((output / LOCK).read_text(encoding="utf-8"))
        return {name: document[name] for name in ("host", "pid", "since")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def described_holder(output: Path) -> str:
    """The process that holds the lock, for a message."""
    holder = holder_of(output)
    if holder is None:  # the process has the lock and has not yet written its name
        return "another process trains there"
    return f"process {holder['pid']} on host {holder['host']} trains there since {holder['since']}"


def _shared_lock(descriptor: int) -> LockState:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError:
        return "unknown"
    return "free"
