"""Signals at a dump, in real processes: what is finished, what is given up, how soon, and the same store in the end."""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import alignkd.teacher_dump.operation.control
import alignkd.teacher_dump.operation.stops
from alignkd.storage import StoreReader, verify_store
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX
from alignkd.storage.files.local import LocalFiles
from alignkd.storage.places import load_manifest
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.schema.commit_record import committed_shards
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import read_workers
from alignkd.teacher_dump.operation.stops import HANG_UPS, DumpStopped, DumpStopSignals

MakeJob = Callable[..., DumpJob]
SHARDS = 6
# far beyond what anything here takes on a busy machine; what passes it does not end at all
SAFETY_SECONDS = 120.0


def in_child(work: Callable[[DumpStopSignals], object]) -> int:
    """A forked process in which signals stop the work, as soon as this returns; it exits as the command does."""
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            try:
                with DumpStopSignals() as stops:
                    os.write(tell, b"1")
                    try:
                        work(stops)
                    finally:
                        # a signal between the end of the block and of this process would have its usual effect
                        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
                code = 128 + stops.received if stops.received else 0
            except DumpStopped as stop:
                code = 128 + stop.signal
        finally:
            os._exit(code)
    os.read(ready, 1)
    os.close(ready)
    os.close(tell)
    return child


def ended(child: int, seconds: float = SAFETY_SECONDS) -> int:
    """How it ended; an error if it lives longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"still there after {seconds} s")


def run(job: DumpJob) -> Callable[[DumpStopSignals], object]:
    return lambda stops: dump(replace(job, control=DumpControl(stops=stops, visible=True)))


@pytest.fixture
def job(make_job: MakeJob, golden: Path) -> DumpJob:
    """Six shards of four samples, each in a forward pass of its own."""
    entries = json.loads((golden / "v1.json").read_text())
    many = [{**entry, "id": f"{number}-{entry['id']}"} for number in range(SHARDS) for entry in entries]
    return make_job(many, token_budget=1, window=2, sanity="off", shard_size=4, logits={"kind": "topk"})


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    """A process that a shell has started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def hash_of(store: Path) -> str:
    return root_hash(LocalFiles(store), load_manifest(store))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SAFETY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def committed(store: Path) -> int:
    return len(committed_shards(store)) if (store / "commits").exists() else 0


def in_hand(store: Path) -> bool:
    return any(store.glob(f"{TEMPORARY_PREFIX}0000*"))


@pytest.fixture(scope="module")
def hashes() -> list[str]:
    """Of the store that nobody interrupted, once it is known."""
    return []


@pytest.fixture
def unbroken(job: DumpJob, tmp_path: Path, hashes: list[str]) -> str:
    if not hashes:
        dump(replace(job, store=job.store.model_copy(update={"path": tmp_path / "unbroken"})))
        hashes.append(hash_of(tmp_path / "unbroken"))
    return hashes[0]


def check_resumed(job: DumpJob, unbroken: str) -> None:
    """What is there is whole, and a run that nobody stops makes it the store of one that nobody stopped."""
    store = job.store.path
    assert isinstance(store, Path)
    if committed(store):
        StoreReader(store, allow_incomplete=True)
        assert all("not committed" in problem.message for problem in verify_store(store).problems)
    dump(job)
    assert hash_of(store) == unbroken and verify_store(store, deep=True).ok
    assert not list(store.glob(f"{TEMPORARY_PREFIX}*"))


def test_the_first_ctrl_c_finishes_the_shard_and_the_second_gives_it_up(
    job: DumpJob, unbroken: str, capfd: pytest.CaptureFixture[str]
) -> None:
    store = job.store.path
    assert isinstance(store, Path)
    child = in_child(run(job))
    wait_for(lambda: committed(store) >= 1 and in_hand(store))
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130
    said = capfd.readouterr().err
    assert "alignkd: finishing shard" in said and "Ctrl-C again abandons it" in said
    before = committed(store)
    assert 1 <= before < SHARDS and not in_hand(store)
    assert [worker.state for worker in read_workers(store)] == ["stopped"]

    child = in_child(run(job))
    wait_for(lambda: in_hand(store))
    os.kill(child, signal.SIGINT)
    wait_for(lambda: "finishing shard" in capfd.readouterr().err)  # else the kernel makes one signal of two
    os.kill(child, signal.SIGINT)
    assert ended(child) == 130 and committed(store) <= before + 2
    check_resumed(job, unbroken)


def test_signals_at_random_moments_lose_at_most_the_shard_in_hand(job: DumpJob, unbroken: str) -> None:
    """SIGTERM and kill -9, again and again on one store; it ends in time and the store never stands wrong."""
    rng = np.random.default_rng(5)
    store = job.store.path
    assert isinstance(store, Path)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        before = committed(store)
        child = in_child(run(job))
        time.sleep(float(rng.uniform(0.05, 0.6)))
        os.kill(child, number)
        expected = -signal.SIGKILL if number == signal.SIGKILL else 128 + number
        # a machine that is quick may have written everything before the signal came
        assert ended(child) in (expected, *((0,) if committed(store) == SHARDS else ()))
        assert committed(store) >= before
    check_resumed(job, unbroken)


def test_sigterm_ends_a_batch_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The main thread is inside C for long and no handler runs: the process ends all the same."""
    monkeypatch.setattr(alignkd.teacher_dump.operation.stops, "SECONDS_AFTER_SIGTERM", 0.3)

    begun, begin = os.pipe()

    def stuck(stops: DumpStopSignals) -> None:
        stops.announce = lambda: "a shard is in hand"
        os.write(begin, b"1")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)

    child = in_child(stuck)
    os.read(begun, 1)
    os.kill(child, signal.SIGTERM)
    assert ended(child) == 143
    assert "alignkd: stopped by SIGTERM; run the same command again to resume" in capfd.readouterr().err


STOPPING = (signal.SIGINT, signal.SIGTERM, *HANG_UPS)


def test_a_signal_before_the_first_shard_stops_at_once() -> None:
    def loading(stops: DumpStopSignals) -> None:
        try:
            time.sleep(2 * SAFETY_SECONDS)
        except Exception as error:  # as around the parsing of files, where anything may come
            raise RuntimeError("taken for a broken file") from error

    for number in STOPPING:
        child = in_child(loading)
        os.kill(child, number)
        assert ended(child) == 128 + number


class TwoShards:
    """An output of two shards with two samples each."""

    def __init__(self) -> None:
        self.left = [0, 1]

    def pending_shards(self) -> list[int]:
        return list(self.left)

    def is_pending(self, shard: int) -> bool:
        return shard in self.left

    def planned_samples(self, shard: int) -> range:
        return range(2)


def write_two_shards(stops: DumpStopSignals, trace: Callable[[FrameType, str, object], Any]) -> int:
    """The calls of a dump under a trace function; returns the number of committed shards."""
    output, control = TwoShards(), DumpControl(stops=stops)
    sys.settrace(trace)
    with contextlib.suppress(DumpStopped), control.over(output) as shards:  # type: ignore[arg-type]
        for shard in shards:
            for _ in range(2):
                control.check()
                control.advance(written=1, tokens=3)
            output.left.remove(shard)
            control.committed(shard, samples=2, num_bytes=5)
    assert control.status.shards_written == 2 - len(output.left)
    return control.status.shards_written


def ctrl_c_at_line(wanted: int) -> Callable[[FrameType, str, object], Any]:
    """A trace function that sends Ctrl-C at one of the lines of control.py, in the order of their execution."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != alignkd.teacher_dump.operation.control.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == wanted:
                signal.raise_signal(signal.SIGINT)
        return trace

    return trace


def test_one_ctrl_c_at_any_line_loses_no_committed_shard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Python runs the handler between any two lines, so also between those that release a committed shard."""
    monkeypatch.setattr(alignkd.teacher_dump.operation.stops, "SECONDS_AFTER_CTRL_C", 1e6)

    def every_line(stops: DumpStopSignals) -> None:
        finished = set()
        for wanted in range(1, 10_000):
            with DumpStopSignals() as inner:
                try:
                    written = write_two_shards(inner, ctrl_c_at_line(wanted))
                finally:
                    sys.settrace(None)
            if not inner.received:
                break
            finished.add(written)
        assert wanted > 50 and finished == {0, 1, 2}

    assert ended(in_child(every_line)) == 0
    assert "the shard is written, no other one is started" in capfd.readouterr().err


@pytest.mark.parametrize("number", STOPPING)
def test_the_watch_goes_on_when_the_block_is_left(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's end, which waits for threads, is part of what a signal bounds."""
    monkeypatch.setattr(alignkd.teacher_dump.operation.stops, "SECONDS_AFTER_SIGTERM", 0.05)
    monkeypatch.setattr(alignkd.teacher_dump.operation.stops, "SECONDS_AFTER_CTRL_C", 0.05)

    def left(stops: DumpStopSignals) -> None:
        with pytest.raises(DumpStopped), DumpStopSignals():
            os.kill(os.getpid(), number)
            time.sleep(2 * SAFETY_SECONDS)
        time.sleep(2 * SAFETY_SECONDS)

    assert ended(in_child(left)) == 128 + number


def test_a_finished_block_leaves_no_watch_behind() -> None:
    def finishing(stops: DumpStopSignals) -> None:
        before = set(threading.enumerate())
        with DumpStopSignals() as inner:
            (watch,) = set(threading.enumerate()) - before
            inner.announce = lambda: ""
            os.kill(os.getpid(), signal.SIGINT)
        assert inner.finishing and inner.received == signal.SIGINT
        watch.join(SAFETY_SECONDS)
        assert not watch.is_alive()

    assert ended(in_child(finishing)) == 0


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    """`nohup alignkd dump ...` goes on when its terminal is closed."""

    def under_nohup(stops: DumpStopSignals) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with DumpStopSignals() as inner:
            os.kill(os.getpid(), signal.SIGHUP)
            inner.check()
        assert inner.received == 0 and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN

    assert ended(in_child(under_nohup)) == 0


def test_a_signal_to_a_forked_child_is_not_heard_by_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools end their processes with SIGTERM: the pipe that the parent listens to must not be the child's too."""
    monkeypatch.setattr(alignkd.teacher_dump.operation.stops, "SECONDS_AFTER_SIGTERM", 0.1)

    def parent(stops: DumpStopSignals) -> None:
        stops.announce = lambda: ""
        child = os.fork()
        if not child:
            time.sleep(2 * SAFETY_SECONDS)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.5)
        stops.check()

    assert ended(in_child(parent)) == 0


FORKS = """
import os, signal
def held():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
seen = []
os.register_at_fork(before=lambda: seen.append(held()))  # registered first, called last
from alignkd.teacher_dump.operation.stops import DumpStopSignals
def fork():
    if os.fork() == 0:
        os._exit(held())
    seen.append(held())
    assert os.wait()[1] == 0
fork()
with DumpStopSignals():
    fork()
print(seen)
"""


def test_a_fork_holds_signals_back_during_a_dump_only() -> None:
    """What a handler raises in the hooks of a fork is dropped: a Ctrl-C would be lost."""
    done = subprocess.run([sys.executable, "-c", FORKS], check=True, capture_output=True, text=True)
    assert done.stdout == "[False, False, True, False]\n"


@pytest.mark.usefixtures("usual_ctrl_c")
def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with DumpStopSignals() as stops:
        assert signal.getsignal(signal.SIGTERM) != before[1]
        stops.check()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt):
        ctypes.pythonapi.PyErr_SetInterrupt()
        time.sleep(0.1)
    threads: list[BaseException] = []

    def elsewhere() -> None:  # handlers can be set in the main thread only; there it does nothing
        try:
            with DumpStopSignals() as stops:
                stops.check()
        except BaseException as error:
            threads.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert threads == []
