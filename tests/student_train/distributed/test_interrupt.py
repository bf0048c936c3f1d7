"""Signals: the same wish told twice is one wish, a second wish ends the process whatever it is doing."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignkd.student_train.distributed.interrupt import ENDING, StopSignals

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
CHILD = """
import signal, sys
sys.path.insert(0, {root!r})
from alignkd.student_train.distributed import interrupt
interrupt.SECONDS_OF_ONE_REQUEST = {{True: float(sys.argv[1]), False: float(sys.argv[2])}}
if len(sys.argv) > 3:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
with interrupt.StopSignals() as signals:
    print("ready", flush=True)
    for line in sys.stdin:
        print(signals.received, signals.stop_requested, flush=True)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(seconds for the same signal, for another one): a process within `StopSignals`, ready."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: object) -> "subprocess.Popen[str]":
        command = [
            sys.executable,
            "-c",
            CHILD.format(root=str(Path(__file__).parents[3] / "src")),
            *map(str, arguments),
        ]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def told(child: "subprocess.Popen[str]") -> str:
    """What the run knows of its signals; blocks until it answers."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


@pytest.mark.parametrize("numbers", [(INT, TERM), (INT, INT), (TERM, TERM), (HUP, TERM, HUP)])
def test_a_wish_that_arrives_twice_at_once_is_one(numbers: tuple[signal.Signals, ...], start: Start) -> None:
    """As from a terminal and DeepSpeed's launcher, or from a process group and `alignkd run`."""
    child = start(1000, 1000)
    for number in numbers:
        child.send_signal(number)
        assert told(child) == f"{int(numbers[0])} True"


@pytest.mark.parametrize(
    ("seconds", "numbers"), [((0, 1000), (INT, INT)), ((1000, 0), (INT, TERM)), ((0, 1000), (HUP, HUP))]
)
def test_a_second_wish_ends_the_process(
    seconds: tuple[float, float], numbers: tuple[signal.Signals, signal.Signals], start: Start
) -> None:
    child = start(*seconds)
    child.send_signal(numbers[0])
    assert told(child) == f"{int(numbers[0])} True"
    child.send_signal(numbers[1])
    assert child.wait(60) == 128 + numbers[1]


def test_nohup_keeps_its_meaning(start: Start) -> None:
    child = start(0, 0, "nohup")
    for _ in range(3):
        child.send_signal(HUP)
        assert told(child) == "0 False"
    child.send_signal(TERM)
    assert told(child) == f"{int(TERM)} True"


def test_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in ENDING}
    with StopSignals() as signals:
        assert not signals.stop_requested
    assert {number: signal.getsignal(number) for number in ENDING} == before
    assert signal.set_wakeup_fd(-1) == -1
