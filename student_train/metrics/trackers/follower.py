"""The training's side of a tracker: starts its process, logs what it says, and never waits for it before the end."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.metrics.trackers.process import END, KINDS
from alignkd.student_train.metrics.trackers.service import TrackedRun

logger = logging.getLogger(__name__)
PROCESS = "alignkd.student_train.metrics.trackers.process"
# At the end of the training. What a tracker has not got by then, a resumed run sends, or its own command.
CLOSE_SECONDS = 15.0
_TICK = 0.05
_PACKAGES = Path(__file__).parents[4]


class Follower:
    """A process that sends the figures of the run to one tracker; its failure is one line of warning."""

    def __init__(self, run: TrackedRun) -> None:
        self._name = run.tracker
        self._unread = b""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = _started(run)
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            logger.warning(
                "%s: its process could not be started (%s); the training goes on without it", self._name, error
            )

    def add(self, line: Metrics) -> None:
        """The process reads the file; this only logs what it said."""
        self._log_messages()

    def add_validation(self, line: Metrics) -> None:
        """As `add`."""

    def flush(self) -> None:
        """Nothing: the files of the run are complete, and a resumed run sends from them what is missing."""

    def close(self) -> None:
        """Let the process send the rest, for a limited time."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.write(END)
            process.stdin.close()
        until = time.monotonic() + CLOSE_SECONDS
        while process.poll() is None and time.monotonic() < until:
            self._log_messages()
            time.sleep(_TICK)
        self._log_messages()
        if self._process is not None and process.poll() is None:
            logger.warning(
                "%s: did not get every step within %g s after the last one; a resumed run sends what is missing",
                self._name,
                CLOSE_SECONDS,
            )
        self._process = None
        _end(process)

    def _log_messages(self) -> None:
        if self._process is None:
            return
        assert self._process.stdout is not None
        with suppress(BlockingIOError):
            while piece := os.read(self._process.stdout.fileno(), 1 << 16):
                self._unread += piece
            self._note_end(self._process)
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            for kind, text in _message(line).items():
                logger.log(logging.WARNING if kind == "warning" else logging.INFO, "%s: %s", self._name, text)

    def _note_end(self, process: subprocess.Popen[bytes]) -> None:
        """The process closed its output: it has ended, or is about to."""
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(1.0)
            if code != 0:
                logger.warning("%s: its process ended with code %d; the training goes on without it", self._name, code)
                self._process = None


def _message(line: bytes) -> dict[str, str]:
    """What the process said in a line; nothing if another program of its start has printed the line.

    A `sitecustomize` or a module that is imported may print before the process has put its standard output away.
    """
    with suppress(ValueError):
        if isinstance(found := json.loads(line), dict):
            return {kind: text for kind, text in found.items() if kind in KINDS}
    return {}


def _started(run: TrackedRun) -> subprocess.Popen[bytes]:
    document: dict[str, Any] = asdict(run) | {"output": str(run.output)}
    # an installed package is found anyway, and its folder must not come before the standard library
    ours = [] if _PACKAGES.name in ("site-packages", "dist-packages") else [str(_PACKAGES)]
    paths = [*ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryFile() as file:  # a pipe would have to be read before the training goes on
        file.write(json.dumps(document).encode())
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", PROCESS, str(file.fileno()), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(file.fileno(),),
            env={**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})},
            start_new_session=True,  # Ctrl-C is for the training
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process and those that it started."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5.0)
    if process.stdout is not None:
        process.stdout.close()
