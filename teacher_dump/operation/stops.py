"""Signals during a dump: which ones finish the current shard, which abandon it, and how soon the process ends.

| signal | effect |
|---|---|
| first Ctrl-C | the current shard is finished, no other is started |
| second Ctrl-C | the current shard is abandoned at once |
| SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 | likewise: a preempted job has seconds, a shard takes minutes |

A shard is abandoned between two batches, where everything can be cleaned up. If a batch takes longer than a preempted
job has left, the process is killed; the next run removes its temporary files.

The interpreter waits for threads at exit, and one of them may be stuck in a read of a file server. So the time limit
stays active until the process has ended.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self

from alignkd.disk.temporary import remove_temporary_folders

SECONDS_AFTER_SIGTERM = 8.0
SECONDS_AFTER_CTRL_C = 3.0
# HUP: the terminal was closed; USR1, USR2: what batch systems send ahead of their kill (SLURM's --signal)
HANG_UPS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# messages on the pipe to the watching thread, in addition to signal numbers
_CLOSED = 0
_GAVE_UP = 255


class DumpStopped(BaseException):
    """The current shard is abandoned because of a signal.

    Like KeyboardInterrupt it is not an Exception, so that code that converts any error of a damaged file does not
    catch it.

    Attributes:
        signal: signal number; the exit code of the process is 128 + this.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class DumpStopSignals:
    """A context manager in which signals end the dump as in the table above; outside it has no effect.

    After a signal that abandons a shard the process ends within seconds, even if `DumpStopped` is caught: leaving the
    block restores the handlers but keeps the time limit. Ignored SIGHUP, SIGUSR1 and SIGUSR2 (`nohup`) stay ignored.

    Attributes:
        received: signal number, 0 before any signal.
        finishing: whether no further shard may be started.
        announce: set while a shard is being written: returns one line for the user that it will be finished. While it
            is None, any signal raises DumpStopped in the main thread.
    """

    def __init__(self) -> None:
        self.received = 0
        self.finishing = False
        self.announce: Callable[[], str] | None = None
        self._giving_up = False
        self._previous: dict[int, object] = {}
        self._pipe: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._watch()
            for number in (signal.SIGINT, signal.SIGTERM, *HANG_UPS):
                if number not in HANG_UPS or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._received)
            _entered.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._pipe is not None:
            _entered.remove(self)
            signal.set_wakeup_fd(-1)
            self._tell(_CLOSED)

    def check(self) -> None:
        """Call between batches.

        Raises:
            DumpStopped: the current shard must be abandoned.
        """
        if self._giving_up:
            raise DumpStopped(self.received)

    def forget(self) -> None:
        """In a forked child: leave signals to the parent, so that ending a child does not end the parent."""
        signal.set_wakeup_fd(-1)
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        announce = self.announce
        if number == signal.SIGINT and announce is not None and not self.finishing:
            self.finishing = True
            _say(announce())
            return
        self.finishing = self._giving_up = True
        self._tell(_GAVE_UP)  # the watching thread cannot tell that a first Ctrl-C came without a current shard
        if announce is None:
            raise DumpStopped(number)

    def _watch(self) -> None:
        """Start a thread that receives signals from the kernel, even while the main thread runs no handler."""
        self._pipe = socket.socketpair()
        for end in self._pipe:
            end.setblocking(end is self._pipe[0])
        signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._count_down, args=(self._pipe[0],), daemon=True, name="stops").start()

    def _tell(self, message: int) -> None:
        with contextlib.suppress(OSError):  # a full pipe already has a message to act on
            if self._pipe is not None:
                self._pipe[1].send(bytes([message]))

    def _count_down(self, pipe: socket.socket) -> None:
        interrupts = 0
        while numbers := pipe.recv(64):
            for number in numbers:
                interrupts += number == signal.SIGINT
                if number == _GAVE_UP:
                    number = self.received
                elif number == _CLOSED or (number == signal.SIGINT and interrupts < 2):
                    continue
                if number in self._previous:
                    _end_after(SECONDS_AFTER_CTRL_C if number == signal.SIGINT else SECONDS_AFTER_SIGTERM, number)
            if _CLOSED in numbers:
                return


def _end_after(seconds: float, number: int) -> NoReturn:
    """End the process after some seconds, whatever it is doing."""
    threading.Event().wait(seconds)
    name = signal.Signals(number).name
    _say(f"alignkd: stopped by {name}; run the same command again to resume")
    remove_temporary_folders()
    os._exit(128 + number)


def end_process(code: int) -> NoReturn:
    """Exit at once after flushing output; the interpreter's normal exit would wait for all threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not there
            stream.flush()
    remove_temporary_folders()
    os._exit(code)


_entered: list[DumpStopSignals] = []
_masks = threading.local()


def _hold_back() -> None:
    """Block signals during a fork: in the child, one would be written to its parent's pipe.

    Signals are blocked only inside `DumpStopSignals`. Elsewhere a Ctrl-C would be lost: Python drops the
    KeyboardInterrupt that a handler raises while the hooks of a fork unblock signals. `DumpStopSignals` acts on a
    signal without that exception.
    """
    held = {signal.SIGINT, signal.SIGTERM, *HANG_UPS}
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, held) if _entered else None


def _let_in() -> None:
    if _masks.before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _forget_all() -> None:
    for stops in _entered:
        stops.forget()
    _let_in()


os.register_at_fork(before=_hold_back, after_in_parent=_let_in, after_in_child=_forget_all)


def _say(line: str) -> None:
    """Write one line to stderr without its buffer, because this runs in signal handlers."""
    if line:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be closed, as after SIGHUP
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{line}\n".encode())
