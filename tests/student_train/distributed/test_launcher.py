"""What a launcher leaves in the environment, and what becomes of a launcher that dies."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from alignkd.student_train.distributed import launcher
from alignkd.student_train.distributed.launcher import LauncherWatch, MeetingPoint, joining, meeting_point
from alignkd.student_train.errors import TrainError

PLACE = MeetingPoint(rank=0, world_size=2, host="127.0.0.1", port=1)
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "there", "MASTER_PORT": "29500"}


def test_several_processes_meet_and_one_is_alone() -> None:
    assert meeting_point(WHOLE) == MeetingPoint(rank=1, world_size=2, host="there", port=29500)
    assert meeting_point({}) is None
    assert meeting_point({"LOCAL_RANK": "0", "MASTER_PORT": "29500"}) is None
    # the only one of a launcher needs no port
    assert meeting_point({**WHOLE, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": "abc"}, "RANK=abc WORLD_SIZE=2 in the environment, expected numbers"),
        ({"RANK": "2"}, "RANK=2 WORLD_SIZE=2 in the environment, expected numbers with 0 <= RANK < WORLD_SIZE"),
        ({"RANK": "-1"}, "RANK=-1 WORLD_SIZE=2"),
        ({"WORLD_SIZE": "²"}, "RANK=1 WORLD_SIZE=²"),
        ({"RANK": "", "WORLD_SIZE": "1"}, "RANK= WORLD_SIZE=1"),
        ({"WORLD_SIZE": None}, "RANK=1 in the environment, but no WORLD_SIZE"),
        ({"RANK": None}, "WORLD_SIZE=2 in the environment, but no RANK"),
        ({"LOCAL_RANK": "gpu0"}, "LOCAL_RANK=gpu0 in the environment, expected a number"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR= MASTER_PORT=29500 in the environment, expected the host"),
        ({"MASTER_PORT": "70000"}, "MASTER_ADDR=there MASTER_PORT=70000"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0"),
    ],
)
def test_what_cannot_be_right_is_one_line(changes: dict[str, str | None], named: str) -> None:
    environment = {name: value for name, value in (WHOLE | changes).items() if value is not None}
    with pytest.raises(TrainError) as error:
        meeting_point(environment)
    assert named in str(error.value) and "unset them to train in a single process" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_local_rank_alone_is_checked_too() -> None:
    assert meeting_point({"LOCAL_RANK": "1"}) is None
    with pytest.raises(TrainError, match="LOCAL_RANK=abc in the environment, expected a number from 0"):
        meeting_point({"LOCAL_RANK": "abc"})


def test_who_waits_is_told_where(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(launcher, "SECONDS_UNTIL_NOTICE", 0.0)
    told = threading.Event()
    monkeypatch.setattr(launcher.logger, "info", lambda text: (launcher.logger.warning(text), told.set()))
    with caplog.at_level(logging.WARNING), joining(PLACE):
        assert told.wait(60)
    assert "waiting for 2 processes at 127.0.0.1:1 (MASTER_ADDR, MASTER_PORT)" in caplog.text


def test_a_name_that_nobody_knows_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(launcher, "SECONDS_FOR_A_NAME", 0.0)
    named = r"MASTER_ADDR=127\.0\.0\.1: no such host \(Name or service not known\)"
    with pytest.raises(TrainError, match=named), joining(PLACE):
        pass


def test_a_port_in_use_and_others_that_do_not_come_are_one_line() -> None:
    """The errors of torch itself, whose wording may change."""
    from datetime import timedelta

    from torch.distributed import TCPStore

    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        place = MeetingPoint(rank=0, world_size=2, host="127.0.0.1", port=owner.getsockname()[1])
        with pytest.raises(TrainError, match=f"MASTER_PORT={place.port} is in use") as error, joining(place):
            TCPStore(place.host, place.port, 2, is_master=True)
        assert "\n" not in str(error.value)
    named = "rank 0 did not meet the 2 processes at .*; start all of them"
    with pytest.raises(TrainError, match=named) as error, joining(place):
        TCPStore(place.host, place.port, 2, is_master=True, timeout=timedelta(seconds=0.1))
    assert "\n" not in str(error.value)


ANCESTORS = """
import os, sys
sys.path.insert(0, {root!r})
from alignkd.student_train.distributed.launcher import LauncherWatch
watch = LauncherWatch(dict({variables!r}))
print(os.getpid(), watch.is_gone(), flush=True)
sys.stdin.readline()
print(watch.is_gone(), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("variables", "generations", "noticed"),
    [
        ({"TORCHELASTIC_RUN_ID": "x"}, 1, True),
        ({"CROSS_SIZE": "1"}, 2, True),
        ({"CROSS_SIZE": "2"}, 2, False),  # the command may be on another machine
        ({}, 1, False),  # a shell that starts a run in the background may end
    ],
)
def test_a_launcher_that_dies_is_noticed(variables: dict[str, str], generations: int, noticed: bool) -> None:
    """Shells stand for the launcher's processes; the outermost one is killed."""
    root = str(Path(__file__).parents[3] / "src")
    command = [sys.executable, "-c", ANCESTORS.format(root=root, variables=variables)]
    for _ in range(generations):
        command = ["sh", "-c", '"$@"; exit', "launcher", *command]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launched:
        assert launched.stdin is not None and launched.stdout is not None
        _rank, gone = launched.stdout.readline().split()
        assert gone == "False"
        os.kill(launched.pid, signal.SIGKILL)
        os.waitid(os.P_PID, launched.pid, os.WEXITED | os.WNOWAIT)
        launched.stdin.write("\n")
        launched.stdin.flush()
        assert launched.stdout.readline().strip() == str(noticed)


def test_this_process_has_no_launcher() -> None:
    assert not LauncherWatch({}).is_gone()
