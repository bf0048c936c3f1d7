"""Signals during a dump: which one finishes the shard in hand, which gives it up, and how soon the process ends.

| signal | what happens |
|---|---|
| first Ctrl-C | the shard in hand is finished, no other is begun |
| second Ctrl-C | the shard in hand is given up at once |
| SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 | the same: a preempted job has seconds, a shard takes minutes |

Giving up happens between two batches, where everything can be put away. A batch that takes longer than a preempted job
has left is cut off: what is on disk then is what a kill leaves, and the next run clears it away.

The promise covers the end of the interpreter, which waits for threads: one of them may be inside a read of a file
server that does not answer. So the watch over a process that gives up goes on until the process has ended.
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

SECONDS_AFTER_SIGTERM = 8.0
SECONDS_AFTER_CTRL_C = 3.0
# HUP: the terminal was closed; USR1, USR2: what batch systems send ahead of their kill (SLURM's --signal)
HANG_UPS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# on the pipe to the watching thread, beside numbers of signals
_CLOSED = 0
_GAVE_UP = 255


class DumpStopped(BaseException):
    """The shard in hand is given up because of a signal.

    No Exception, like KeyboardInterrupt: code that turns whatever a broken file may raise into a message of its own
    must not take it for that.

    Attributes:
        signal: its number; a process that ends for it has exit code 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class DumpStopSignals:
    """While entered, signals end the dump as the table above says. Without being entered it never stops anything.

    After a signal that gives up, the process ends within seconds, also if `DumpStopped` is caught: leaving the block
    puts the handlers back but does not end the watch. A SIGHUP, SIGUSR1 or SIGUSR2 that is ignored (`nohup`) stays so.

    Attributes:
        received: number of the signal, 0 while there was none.
        finishing: no shard is to be begun any more.
        announce: set while there is a shard in hand: gives one line for the person at the keyboard, that it will be
            finished. While it is None any signal raises DumpStopped where it finds the main thread.
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
        """To be called between batches.

        Raises:
            DumpStopped: the shard in hand is to be given up.
        """
        if self._giving_up:
            raise DumpStopped(self.received)

    def forget(self) -> None:
        """In a forked child: signals are the parent's affair, and a child that is ended must not end the parent."""
        signal.set_wakeup_fd(-1)
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT and self.announce is not None and not self.finishing:
            self.finishing = True
            _say(self.announce())
            return
        self.finishing = self._giving_up = True
        self._tell(_GAVE_UP)  # a first Ctrl-C that finds no shard in hand is not known to the watch as such
        if self.announce is None:
            raise DumpStopped(number)

    def _watch(self) -> None:
        """A thread that hears of signals from the kernel, also while the main thread computes and runs no handler."""
        self._pipe = socket.socketpair()
        for end in self._pipe:
            end.setblocking(end is self._pipe[0])
        signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._count_down, args=(self._pipe[0],), daemon=True, name="stops").start()

    def _tell(self, message: int) -> None:
        with contextlib.suppress(OSError):  # a full pipe holds enough for the watch to act on
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
    """Nothing puts this off: what the process still does after a signal has so long and no longer."""
    threading.Event().wait(seconds)
    name = signal.Signals(number).name
    _say(f"alignkd: stopped by {name}; run the same command again to go on")
    os._exit(128 + number)


def end_process(code: int) -> NoReturn:
    """End now with an exit code, output written: the interpreter's own end would wait for every thread."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not there
            stream.flush()
    os._exit(code)


_entered: list[DumpStopSignals] = []
_masks = threading.local()


def _hold_back() -> None:
    """A signal that reaches a child before it has forgotten would be written to its parent's pipe.

    Only where there is such a pipe: Python drops what a handler raises while it lets the signals in again, and so a
    KeyboardInterrupt; of a signal that `StopSignals` has received, enough is left without the exception.
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
    """One line on stderr, past its buffer: this runs in signal handlers and beside them."""
    if line:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone, which SIGHUP is about
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{line}\n".encode())
