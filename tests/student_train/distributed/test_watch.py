"""Ranks end together: what one reports is what the others say, and a rank that is silent is lost."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, TCPStore

from alignkd.student_train.distributed import watch
from alignkd.student_train.distributed.watch import RankWatch, is_lost_connection
from alignkd.student_train.errors import TrainError

Watches = Callable[..., list[RankWatch]]


class Ends(list[str]):
    """The lines with which ranks were ended."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Event()

    def __call__(self, text: str) -> None:
        self.append(text)
        self.came.set()


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[TCPStore]:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.1)
    yield TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60))


@pytest.fixture
def watches(store: TCPStore, ends: Ends) -> Watches:
    """watches(number, silence): of so many ranks, not started."""

    def make(number: int, silence: float = 1000.0) -> list[RankWatch]:
        return [RankWatch(store, rank, number, place="there:1", silence=silence, end=ends) for rank in range(number)]

    return make


def ended(ends: Ends) -> str:
    assert ends.came.wait(60), "no rank was ended"
    return ends[0]


def test_a_reported_problem_ends_the_others(watches: Watches, ends: Ends) -> None:
    first, second = watches(2)
    first.start()
    second.report(TrainError("store s: not there\nyet"))
    second.report(RuntimeError("what follows from it"))
    line = ended(ends)
    assert line.startswith("rank 0 on host ") and "ends because of rank 1 on host " in line
    assert line.endswith(": store s: not there yet")


def test_the_reported_problem_explains_a_lost_connection(watches: Watches) -> None:
    first, second = watches(2)
    first.start()
    second.report(FileNotFoundError(2, "No such file or directory", "image.png"))
    assert "rank 1 on host" in (text := first.reason_of_loss(RuntimeError("[a/gloo/pair.cc:553] Connection closed")))
    assert "image.png: No such file or directory; check the path" in text


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            "[/a/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:31878. This is "
            "typically caused by a remote worker crashing.",
            "Connection closed by peer [10.0.0.2]:31878",
        ),
        (
            "NCCL error in: /a/NCCLUtils.cpp:93, invalid.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0",
            "Duplicate GPU detected : rank 1 and rank 0",
        ),
        ("Failed to recv, got 0 bytes", "Failed to recv, got 0 bytes"),
    ],
)
def test_a_lost_connection_that_nobody_has_reported_is_one_line(error: str, shown: str, watches: Watches) -> None:
    (rank,) = watches(1)
    text = rank.reason_of_loss(RuntimeError(error))
    assert f"an exchange with the other processes failed ({shown}); if a process was killed" in text
    assert text.endswith("run the same command again on all machines to resume from the last checkpoint")


def test_which_errors_are_lost_connections() -> None:
    assert is_lost_connection(RuntimeError("[/a/gloo/gloo/transport/tcp/pair.cc:537] Read error"))
    assert is_lost_connection(DistNetworkError("closed"))
    assert not is_lost_connection(RuntimeError("The size of tensor a (3) must match"))
    assert not is_lost_connection(TrainError("gloo"))


def test_a_rank_that_falls_silent_ends_the_others(watches: Watches, store: TCPStore, ends: Ends) -> None:
    ranks = watches(3, silence=0.4)
    for rank in ranks[:2]:
        rank.start()
    for sign in "78":  # rank 2 has given two signs of life
        store.set("alignkd/beat/2", sign)
        time.sleep(0.1)
    line = ended(ends)
    assert "ends because of rank 2, of which rank 1 on host" in line and "no sign of life for 0 s" in line


def test_a_sign_of_an_earlier_run_is_none(watches: Watches, store: TCPStore, ends: Ends) -> None:
    """The next rank has not begun this run: how long the others wait for it is another limit."""
    first, _ = watches(2, silence=0.1)
    store.set("alignkd/beat/1", "7")
    first.start()
    time.sleep(0.5)
    assert not ends


def test_ranks_that_live_are_left_alone(watches: Watches, ends: Ends) -> None:
    for rank in watches(3, silence=60):
        rank.start()
    time.sleep(0.3)
    assert not ends


def test_outside_of_a_run_no_process_is_ended(watches: Watches, ends: Ends) -> None:
    first, second = watches(2)
    first.is_on = False
    first.start()
    second.report(TrainError("late"))
    time.sleep(0.5)
    assert not ends
    first.is_on = True
    assert ended(ends).endswith("late")


def test_a_store_that_is_gone_ends_the_ranks(monkeypatch: pytest.MonkeyPatch, ends: Ends) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.1)

    class Gone:
        def clone(self) -> "Gone":
            return self

        def set(self, *_: str) -> None:
            raise DistNetworkError("Broken pipe")

    monkeypatch.setattr(watch, "PrefixStore", lambda _name, store: store)
    RankWatch(Gone(), 1, 2, place="there:1", end=ends).start()  # type: ignore[arg-type]
    assert "there:1: its process cannot be reached any more (Broken pipe); run the same command" in ended(ends)


def test_the_first_rank_waits_until_the_others_know(watches: Watches, ends: Ends) -> None:
    """Its process may be the store, which ends with it."""
    first, second = watches(2)
    second.start()
    began = time.monotonic()
    first.report(TrainError("full disk"))
    assert time.monotonic() - began < watch.READING_SECONDS
    assert ended(ends).endswith("full disk")


def test_a_run_after_a_failed_one_has_problems_of_its_own(watches: Watches, ends: Ends) -> None:
    """A script may catch the error of a run on all ranks, and train again in the same processes."""
    both = watches(2)
    second = both[1]
    second.report(TrainError("of the first run"))
    for rank in both:
        rank.end_run()
        rank.is_on = True
        rank.start()
    time.sleep(0.5)
    assert not ends
    second.report(TrainError("of the second run"))
    assert ended(ends).endswith("of the second run")
