"""Signals for a phase in a process of its own."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from alignkd.pipeline.runs.phase_process import _signals_for

PHASE = 'for s in TERM HUP USR1 USR2; do trap "echo $s; exit 7" $s; done; echo ready; while :; do sleep .02; done'


@pytest.fixture
def phase() -> Iterator["subprocess.Popen[str]"]:
    """A process that tells which signal ends it."""
    with subprocess.Popen(["sh", "-c", PHASE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1", "USR2"])
@pytest.mark.parametrize("has_launcher", [False, True])
def test_what_comes_to_us_alone_is_passed_on(name: str, has_launcher: bool, phase: "subprocess.Popen[bytes]") -> None:
    """To a launcher always as SIGTERM, which it passes on to its own processes."""
    with _signals_for(phase, has_launcher):
        os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        output, _ = phase.communicate(timeout=600)
    assert str(output).strip() == ("TERM" if has_launcher else name) and phase.returncode == 7


def test_nohup_keeps_its_meaning(phase: "subprocess.Popen[bytes]") -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _signals_for(phase, False):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and phase.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)
