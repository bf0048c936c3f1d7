"""Runs `alignkd` commands as child processes, as a user would type them; no child outlives the demo."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import alignkd
from alignkd.vlm.errors import InputError

ALIGNKD = "alignkd.pipeline.cli"
TEACHER_TRAINING = "alignkd.pipeline.demo.train_teacher"
_PACKAGES = Path(alignkd.__file__).parents[1]
_STDERR = 2
_PR_SET_PDEATHSIG = 1
# Loaded here, because a forked child must do as little as possible.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_TICK_SECONDS = 0.5
# After SIGTERM, a training process finishes its step and writes a checkpoint.
_GRACE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Command:
    """One process.

    Attributes:
        name: name of the process in messages.
        arguments: arguments of `python -m`.
        log: file for all output; None sends it to the terminal (stderr).
        threads: number of arithmetic threads; None leaves the choice to the process.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path | None = None
    threads: int | None = None


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_commands(
    commands: Sequence[Command], *, at_once: int = 1, on_tick: Callable[[list[Command]], None] = lambda done: None
) -> None:
    """Run every command, at most `at_once` at the same time.

    Args:
        commands: commands in the order in which they start.
        at_once: largest number of running processes.
        on_tick: called about twice a second with the finished commands.

    Raises:
        InputError: one of them failed; the others are stopped first.
    """
    waiting, running, done = list(commands), dict[Command, subprocess.Popen[bytes]](), list[Command]()
    with _stopped_with_parent(running), ExitStack() as logs:
        while waiting or running:
            while waiting and len(running) < at_once:
                command = waiting.pop(0)
                running[command] = _start(command, logs)
            _wait_for_one(list(running.values()))
            for command in [command for command, process in running.items() if process.poll() is not None]:
                _check(command, running.pop(command).returncode)
                done.append(command)
            on_tick(done)


def _start(command: Command, logs: ExitStack) -> subprocess.Popen[bytes]:
    output: int | IO[bytes] = _STDERR
    if command.log is not None:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        output = logs.enter_context(command.log.open("ab"))
    arguments = [sys.executable, "-m", *command.arguments]
    return subprocess.Popen(
        arguments,
        stdout=output,
        stderr=output,
        env=_environment(command.threads),
        preexec_fn=_stop_when_parent_dies if _LIBC else None,
    )


def _stop_when_parent_dies() -> None:
    """Runs in the child before the command: Linux then sends SIGTERM when the parent ends, even by SIGKILL.

    Otherwise the training of a killed demo would continue, and the training of the next demo would write to the same
    files.
    """
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment(threads: int | None) -> Mapping[str, str]:
    paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **limits}


def _wait_for_one(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until any process has ended, or for one tick."""
    until = time.monotonic() + _TICK_SECONDS
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        time.sleep(0.05)


def _check(command: Command, exit_code: int) -> None:
    if exit_code == 0:
        return
    how = f"exit code {exit_code}" if exit_code > 0 else f"signal {-exit_code}"
    reported = "see the lines above"
    if command.log is not None:
        lines = command.log.read_text(errors="replace", encoding="utf-8").splitlines()
        reported = f"its last line is {lines[-1]!r}, see {command.log}" if lines else f"{command.log} is empty"
    raise InputError(
        f"{command.name}: ended with {how}: {reported}; fix the cause and run the same command again to resume"
    )


@contextmanager
def _stopped_with_parent(running: Mapping[Command, subprocess.Popen[bytes]]) -> Iterator[None]:
    """However this process ends (except by SIGKILL), stop the running children and wait for them."""
    main = threading.current_thread() is threading.main_thread()  # Python allows handlers there only
    previous = signal.signal(signal.SIGTERM, _exit) if main else None
    try:
        yield
    except KeyboardInterrupt:
        # The terminal has sent SIGINT to them too; a second signal would make them skip their checkpoint.
        _wait_for_all(running.values(), _GRACE_SECONDS)
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, previous)
        for process in running.values():
            process.terminate()
        _wait_for_all(running.values(), _GRACE_SECONDS)
        for process in running.values():
            process.kill()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _wait_for_all(processes: Iterable[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.05)
