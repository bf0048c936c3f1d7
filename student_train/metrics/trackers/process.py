"""The process of one tracker: follows the metrics files of a run until the run ends; loads no torch.

It is a process of its own so that a library that waits, prints, asks or fails changes nothing in the training. It ends
when the training says so or is gone, and sends before what is in the files.
"""

import fcntl
import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from alignkd.student_train.metrics.trackers.kept import FOLDER, NO_ROW, Kept
from alignkd.student_train.metrics.trackers.no_secrets import without_secrets
from alignkd.student_train.metrics.trackers.rows import Row, RowReader
from alignkd.student_train.metrics.trackers.service import Service, TrackedRun

POLL_SECONDS = 1.0
# between attempts after a failure: doubled from the first to the last
FIRST_PAUSE, LAST_PAUSE = 5.0, 600.0
# After the end of the training, also if that was killed. The training itself waits for less (`follower.py`).
LONGEST_END = 60.0
ROWS_AT_ONCE = 500
LONGEST_REASON = 200
END = b"end"
KINDS = ("note", "warning")  # of messages


class Messages:
    """Lines of JSON to the training process, which logs them.

    Attributes:
        failures: how often the tracker failed.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.failures = 0

    def note(self, text: str) -> None:
        """Something to know."""
        self._send("note", without_secrets(text))

    def failed(self, error: BaseException | str) -> None:
        """Count a failure; the first one is a warning."""
        self.failures += 1
        if self.failures == 1:
            self._send("warning", f"{reason(error)}; the training goes on, and what is missing is sent later")

    def ended(self, last: int, unsent: str | None) -> None:
        """The last message."""
        times = f"failed {self.failures} times, and " if self.failures > 1 else ""
        if unsent is not None:
            self._send("warning", f"{times}did not get every step ({unsent}); a resumed run sends what is missing")
        elif times:
            self._send("note", f"{times}has every step up to {last // 2}")

    def _send(self, kind: str, text: str) -> None:
        with suppress(OSError, ValueError):  # the training is gone
            self._file.write(json.dumps({kind: text}) + "\n")
            self._file.flush()


def reason(error: BaseException | str) -> str:
    """One short line about an error."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(str(without_secrets(text)).split())[:LONGEST_REASON].rstrip(" .:;")


class Training:
    """The process that trains.

    Attributes:
        ended: set when it said so, or is gone.
    """

    def __init__(self, process: int, file: IO[bytes]) -> None:
        self.ended = threading.Event()
        self._process = process
        threading.Thread(target=self._read, args=(file,), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _read(self, file: IO[bytes]) -> None:
        file.read(len(END))
        self.ended.set()

    def _watch(self) -> None:
        """Its forked children may keep the pipe open after a kill; the number of the parent changes in any case."""
        while os.getppid() == self._process and not self.ended.wait(POLL_SECONDS):
            pass
        self.ended.set()
        threading.Event().wait(LONGEST_END)
        os._exit(1)


def follow(service: Service, run: TrackedRun, ended: threading.Event, messages: Messages) -> None:
    """Send every row of the run that the tracker does not have, until the run has ended; no error leaves."""
    sender, pause = _Sender(service, run, messages), POLL_SECONDS
    while True:
        at_end = ended.is_set()  # before reading: nothing is written after it
        try:
            while sender.send_some():
                pass
            pause, unsent = POLL_SECONDS, None
        except Exception as error:
            messages.failed(error)
            pause, unsent = min(max(FIRST_PAUSE, 2 * pause), LAST_PAUSE), reason(error)
        if at_end:
            break
        ended.wait(pause)
    try:
        sender.close()
    except Exception as error:
        messages.failures += 1
        unsent = unsent or reason(error)
    messages.ended(sender.last, unsent)


class _Sender:
    """Rows from the files of a run to its tracker.

    Attributes:
        last: number of the last row that the tracker has.
    """

    def __init__(self, service: Service, run: TrackedRun, messages: Messages) -> None:
        self.last = NO_ROW
        self._service, self._run, self._messages = service, run, messages
        self._kept = Kept.of(run.output, run.tracker, run.settings)
        self._reader = RowReader(run.output, run.done)
        self._rows: list[Row] = []
        self._is_open = False

    def send_some(self) -> bool:
        """Send the next rows, once the tracker is reached; whether there may be more.

        Raises:
            Exception: any; what was not sent is sent by the next call.
        """
        if not self._is_open:
            self._open()
        for problem in self._service.problems():
            self._messages.failed(problem)
        if not self._rows:
            found = self._reader.next_rows(ROWS_AT_ONCE)
            if not found:
                return False
            self._rows = [row for row in found if row.number > self.last]
        if self._rows:
            while self._rows:
                self._service.send(self._rows[0])
                self.last = self._rows.pop(0).number
            self._keep(self._kept.after(max(self.last, self._kept.row)))
        return True

    def close(self) -> None:
        """Send the scores, unless the tracker has them; wait until everything is delivered; see `Service.close`."""
        self._reader.close()
        if self._is_open and not self._rows and self._run.scores not in ({}, self._kept.scores):
            points = {f"eval/{name}": score for name, score in self._run.scores.items()}
            self._service.send(Row(number=self.last + 1, points=points, of_step=self._run.steps))
            self.last += 1
            self._keep(replace(self._kept, row=self.last, scores=self._run.scores))
        self._service.close(complete=self.last // 2 >= self._run.steps)

    def _open(self) -> None:
        self._keep(self._kept)
        self.last = self._service.open(self._run, self._kept)
        self._is_open = True
        self._messages.note(self._service.place)
        if self._kept.new and self.last >= 2 * self._run.done + 2:
            self._messages.failed(
                f"has a run of this identifier already, whose steps end at {self.last // 2}; earlier ones are not sent"
            )

    def _keep(self, kept: Kept) -> None:
        kept.write(self._run.output, self._run.tracker)
        self._kept = kept


def main() -> None:
    """`python -m alignkd.student_train.metrics.trackers.process DESCRIPTOR PARENT`: described by an open file."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as file:
        run = described(json.load(file))
    training = Training(int(sys.argv[2]), os.fdopen(os.dup(0), "rb", buffering=0))
    messages = Messages(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    # libraries print to the standard output, and ask at the standard input
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    with _lock(run) as lock:
        while not _is_locked(lock):  # the process of a training that was just killed sends its last rows
            time.sleep(POLL_SECONDS)
        try:
            service = service_of(run.tracker)
        except Exception as error:
            messages.failed(error)
            return
        follow(service, run, training.ended, messages)


def service_of(tracker: str) -> Service:
    """The client of a tracker, which imports its library."""
    if tracker == "wandb":
        from alignkd.student_train.metrics.trackers.wandb_service import WandbService

        return WandbService()
    from alignkd.student_train.metrics.trackers.trackio_service import TrackioService

    return TrackioService()


def described(document: dict[str, Any]) -> TrackedRun:
    """The inverse of `dataclasses.asdict`, by way of JSON."""
    return TrackedRun(**document | {"output": Path(document["output"]), "tags": tuple(document["tags"])})


def _lock(run: TrackedRun) -> IO[bytes]:
    (run.output / FOLDER).mkdir(exist_ok=True)
    return (run.output / FOLDER / f"{run.tracker}.lock").open("wb")


def _is_locked(file: IO[bytes]) -> bool:
    """Whether this process has the lock now; True where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


if __name__ == "__main__":
    main()
    os._exit(0)  # no library may wait at its exit
