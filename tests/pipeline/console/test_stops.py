"""Signals at commands of which a thread is inside a read or write that does not return: they end all the same."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prepared_processes import PreparedProcess, PreparedProcesses

from alignkd.pipeline.cli import main

WriteConfig = Callable[..., Path]
Blocked = Callable[..., PreparedProcess]
SCRIPT = Path(__file__).parent / "blocked_process.py"
# a process that needs longer never ends: the script sets the watches to a fraction of a second
SAFETY_SECONDS = 60.0


@pytest.fixture
def blocked(prepared: PreparedProcesses, wait_until: Callable[..., None]) -> Iterator[Blocked]:
    """blocked(what, *arguments of alignkd): the process, once a thread of it is inside a call that does not return."""
    started: list[PreparedProcess] = []

    def start(what: str, *arguments: object) -> PreparedProcess:
        process = prepared.start(SCRIPT, what, *arguments)
        started.append(process)
        wait_until(lambda: process.poll() is not None or "blocked" in process.output(), f"the block of {what}")
        assert process.poll() is None, process.errors()
        return process

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_dump_ends_while_an_image_is_being_read(
    number: signal.Signals, write_config: WriteConfig, blocked: Blocked
) -> None:
    """In the checks of the teacher, before the first shard: one Ctrl-C is enough."""
    process = blocked("images", "dump", write_config())
    process.send_signal(number)
    assert process.wait(SAFETY_SECONDS) == 128 + number


def test_a_dump_ends_while_a_commit_waits_for_the_disk(
    write_config: WriteConfig, blocked: Blocked, tmp_path: Path
) -> None:
    process = blocked("commits", "dump", write_config(teacher={"sanity": "off"}))
    process.send_signal(signal.SIGTERM)
    assert process.wait(SAFETY_SECONDS) == 143
    assert not list((tmp_path / "store" / "commits").iterdir())


def test_ctrl_c_ends_a_probe_and_a_verification(
    write_config: WriteConfig, blocked: Blocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a temporary folder left, though its block has not ended."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    config = write_config(teacher={"sanity": "off"})
    main(["dump", str(config)], standalone_mode=False)
    verify = ["verification", "shards", "verify", tmp_path / "store"]
    for what, *command in (["images", "plan", config, "--probe", 2], verify):
        process = blocked(what, *command)
        process.send_signal(signal.SIGINT)
        assert process.wait(SAFETY_SECONDS) == 130
    assert not list(temporary.iterdir())
