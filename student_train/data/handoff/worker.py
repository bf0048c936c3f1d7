"""Signals and end of data workers: they end with the training process, and it survives their end."""

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
    """Set up signals in a new worker process whose parent is the process `parent`.

    Ctrl-C, a closed terminal and the signals of launchers and batch systems go to every process of a group. The worker
    survives the first one, because the training process needs it for the rest of the current step. It is killed when
    the training process ends, for whatever reason.
    """
    signal.set_wakeup_fd(-1)  # inherited: the training process would receive signals of this process
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if sys.platform == "linux":  # elsewhere torch's worker checks every few seconds whether its parent is alive
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)


@contextmanager
def restore_sigchld_handler() -> Iterator[None]:
    """Remove the SIGCHLD handler that torch's DataLoader installs if it is started inside the block.

    That handler raises wherever the main thread is, for example in the middle of a checkpoint. Without it the loader
    notices a dead worker within 5 seconds of waiting for its batch.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers there only
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if in_main_thread and before is not None:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def worker_death_as_train_error(workers: int) -> Iterator[None]:
    """Turn torch's error about a killed worker into a TrainError of one line."""
    try:
        yield
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        raise TrainError(
            f"{str(error).splitlines()[0]}: it was killed, possibly because the host is out of memory; run "
            f"again to resume from the last checkpoint, or lower data_workers {workers}"
        ) from error
