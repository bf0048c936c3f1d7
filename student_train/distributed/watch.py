"""Ranks that watch each other: when one ends with an error or falls silent, the others end too, in one line.

Otherwise they would wait in an exchange until its time limit, and NCCL would then abort the process with a dump. The
ranks talk through the store at which they have met (`torch.distributed`), in threads of their own, so it does not
matter where the main thread waits: in gloo, in NCCL, or inside DeepSpeed.

Every rank writes a sign of life, and looks at that of the next rank and at whether any rank has reported a problem.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason
from alignkd.disk.temporary import remove_temporary_folders

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0
# Python code of a rank may be kept from running for minutes, while one tensor of gigabytes is read from a slow disk.
SILENCE_SECONDS = 300.0
# in which a rank that knows of a problem should end by itself
GRACE_SECONDS = 10.0
# in which the other ranks read the problem of the one whose process is the store
READING_SECONDS = 3.0
PROBLEM = "problem"
RESUME = "run the same command again on all machines to resume from the last checkpoint"


class RankWatch:
    """The watch of one rank; its threads end with the process.

    Args:
        store: at which all ranks have met.
        rank: of this process.
        world_size: number of ranks.
        place: where the store is, for messages.
        silence: seconds after which a rank without a sign of life is lost.
        end: ends this process; called in a thread.

    Attributes:
        is_on: whether this process may be ended; off outside of a training run.
        is_lost: whether the connection to another rank was lost.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        *,
        place: object = "the store",
        silence: float = SILENCE_SECONDS,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self.is_on, self.is_lost = True, False
        self._rank, self._world_size, self._place = rank, world_size, place
        self._next = (rank + 1) % world_size
        self._silence, self._end = silence, _end_process if end is None else end
        self._own = f"rank {rank} on host {socket.gethostname()}"
        # one connection per thread: a call that waits blocks its connection
        own = PrefixStore("alignkd", store)
        self._store, self._reports = (own.clone() for _ in range(2))  # type: ignore[attr-defined]
        # A caller may go on after the error of a run, and train again in the same processes: each run of theirs has its
        # own number, and a problem belongs to one of them.
        self._run = 0
        self._problems: dict[int, str] = {}
        self._rounds = 0
        self._reported = False

    def start(self) -> None:
        """Start both threads: one talks to the store, and may wait there forever; the other one judges."""
        for target in (self._talk, self._judge):
            threading.Thread(target=target, daemon=True, name=f"watch{target.__name__}").start()

    def end_run(self) -> None:
        """The run has ended, with or without an error; a next one may follow. All ranks do the same runs."""
        self.is_on = False
        self._run += 1
        self._reported = False

    def report(self, error: BaseException) -> None:
        """Tell the other ranks that this one ends with an error; returns when they know or after a few seconds."""
        if self._reported:
            return
        self._reported = True
        with suppress(RuntimeError):  # the store is gone: nobody can be told
            self._tell(self._reports, self._run, f"{self._own}: {_one_line(error)}")
            if self._rank == 0:  # whose process may be the store
                others = [f"end/{self._run}/{rank}" for rank in range(1, self._world_size)]
                limit = time.monotonic() + READING_SECONDS
                while not self._reports.check(others) and time.monotonic() < limit:
                    time.sleep(POLL_SECONDS / 10)

    def reason_of_loss(self, error: BaseException) -> str:
        """Why an exchange with another rank failed with `error`: what that rank reported, or what can be said without.

        One line with the next step.
        """
        limit = time.monotonic() + 3 * POLL_SECONDS
        while self._problem is None and time.monotonic() < limit:
            time.sleep(POLL_SECONDS / 10)
        if self._problem is not None:
            return f"{self._own} ends because of {self._problem}"
        return (
            f"{self._own}: an exchange with the other processes failed ({_shown(str(error))}); if a process was "
            f"killed, or a machine or the network failed, {RESUME}"
        )

    @property
    def _problem(self) -> str | None:
        """What has ended this run, of any rank; None while nothing is known."""
        return self._problems.get(self._run)

    def _tell(self, store: Store, run: int, text: str) -> None:
        store.compare_set(f"{PROBLEM}/{run}", "", text)  # the first one is the cause of the others
        store.set(f"end/{run}/{self._rank}", "")

    def _talk(self) -> None:
        silent, before, lives, last = 0.0, b"", False, self._run
        store, beat = self._store, f"beat/{self._next}"
        while True:
            run = self._run
            if run != last or not self.is_on:  # after a run, it may be the end of all processes, and of the store
                silent, before, lives, last = 0.0, b"", False, run
            if not self.is_on or run in self._problems:
                time.sleep(POLL_SECONDS)
                continue
            try:
                store.set(f"beat/{self._rank}", str(self._rounds))
                if store.check([f"{PROBLEM}/{run}"]):
                    self._problems[run] = store.get(f"{PROBLEM}/{run}").decode(errors="replace")
                    store.set(f"end/{run}/{self._rank}", "")
                elif store.check([beat]):
                    found = store.get(beat)
                    lives = lives or before not in (b"", found)  # not only a sign that is left from an earlier run
                    # in rounds, not by the clock: after a suspended job goes on, its clock has jumped
                    silent, before = (silent + POLL_SECONDS, before) if found == before else (0.0, found)
                    if lives and silent >= self._silence:
                        self._tell(store, run, self._lost(f"rank {self._next}"))
            except RuntimeError as error:
                # of torch.distributed: the process that is the store has ended
                what = f"its process cannot be reached any more ({' '.join(str(error).split())[:80]})"
                self._problems[run] = f"{self._place}: {what}; {RESUME}"
            self._rounds += 1
            time.sleep(POLL_SECONDS)

    def _lost(self, what: str) -> str:
        return (
            f"{what}, of which {self._own} has seen no sign of life for {self._silence:.0f} s: its process or machine "
            f"hangs, or the network failed; {RESUME}"
        )

    def _judge(self) -> None:
        known = stuck = 0.0
        rounds = -1
        while True:
            time.sleep(POLL_SECONDS)
            if not self.is_on:
                known = stuck = 0.0
                continue
            stuck, rounds = (stuck + POLL_SECONDS, rounds) if self._rounds == rounds else (0.0, self._rounds)
            known = known + POLL_SECONDS if self._problem is not None else 0.0
            if known > GRACE_SECONDS:
                return self._end(f"{self._own} ends because of {self._problem}")
            if stuck > self._silence and self._problem is None:
                return self._end(f"{self._own} ends because of {self._lost(f'the process at {self._place}')}")


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exchange failed because another rank, or the way to it, is gone, or did not answer in time."""
    # gloo raises a plain RuntimeError, whose text begins with the place in gloo's source
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _shown(error: str) -> str:
    """The part of an error of gloo or NCCL that says what happened."""
    text = " ".join(error.split())
    text = text.partition("Last error: ")[2] or text  # of NCCL, after the place in its source and general advice
    if ".cc:" in text:  # of gloo, after the place in its source
        text = text.partition(".cc:")[2].partition("] ")[2]
    return text.partition(". This is typically")[0][:160]


def _one_line(error: BaseException) -> str:
    if isinstance(error, AlignkdError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename or 'output'}: {reason(error)}; {next_step(error)}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _end_process(text: str) -> None:
    with suppress(OSError):
        logger.error("%s", text)
    remove_temporary_folders()
    os._exit(1)
