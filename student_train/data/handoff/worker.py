"""Life and death of data workers: they follow the training process, and never take it with them."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alignkd.student_train.errors import TrainError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def become_data_worker(worker: int, parent: int) -> None:
    """To be called in a fresh worker process whose parent is the process `parent`.

    Ctrl-C, a closed terminal and the signals of launchers and batch systems go to every process of a group; the worker
    outlives the first one, because the training process asks it for the rest of the step in hand. It dies with the
    training process, however that dies.
    """
    signal.set_wakeup_fd(-1)  # inherited: the training process would take this one's signals for its own
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if sys.platform == "linux":  # elsewhere torch's worker looks for its parent every few seconds
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


@contextmanager
def no_errors_from_child_signals() -> Iterator[None]:
    """Undo the SIGCHLD handler that torch's DataLoader installs when it starts inside.

    That handler raises wherever the main thread happens to be, be it in the middle of a checkpoint. Without it the
    loader notices a dead worker when it waits for its batch, within 5 seconds.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers there only
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if in_main_thread and before is not None:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def dead_workers_are_one_line(workers: int) -> Iterator[None]:
    """Turn torch's error about a killed worker into a TrainError."""
    try:
        yield
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise TrainError(
            f"{str(error).splitlines()[0]}: killed from outside, perhaps for want of memory; run again, the run goes "
            f"on from its last checkpoint, or lower data_workers {workers}"
        ) from error
