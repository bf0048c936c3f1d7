"""Ranks meet at a store in which an earlier attempt has left its keys."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, TCPStore

from alignkd.student_train.distributed.meeting import Meeting, meet


@pytest.fixture
def store() -> Iterator[TCPStore]:
    yield TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60))


def attempt(store: TCPStore, ranks: int = 3) -> list[Meeting]:
    """Every rank with a connection of its own, the first one last."""
    clones = [store.clone() for _ in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:
        each = [pool.submit(meet, clones[rank], rank, ranks, seconds=60) for rank in reversed(range(ranks))]
        return [future.result() for future in reversed(each)]


def test_ranks_of_an_attempt_have_keys_of_their_own(store: TCPStore) -> None:
    first = attempt(store)
    first[0].store.set("address", "of a process that has ended")
    store.set("ask/1", "a rank that was killed before it was answered")
    second = attempt(store)
    assert not second[1].store.check(["address"])
    second[0].store.set("address", "new")
    assert [met.store.get("address") for met in second] == [b"new"] * 3
    assert first[2].store.get("address") == b"of a process that has ended"
    assert len(second[2].hosts) == 3 and len({*second[2].hosts}) == 1


def test_who_does_not_come_is_named(store: TCPStore) -> None:
    with pytest.raises(DistStoreError, match="ranks 1, 2 of 3 have not come"):
        meet(store, 0, 3, seconds=0.1)
    with pytest.raises(DistStoreError, match="rank 0 has not answered"):
        meet(store, 2, 3, seconds=0.1)
