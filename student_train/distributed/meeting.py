"""Ranks find each other at the launcher's store, where an earlier attempt of the same job may have left its keys.

torchrun keeps one store while it starts all processes again (`--max-restarts`). With the keys of the attempt before, a
rank would connect to processes that have ended. So the first rank draws a name for the attempt, and tells it to every
rank that asks for it under a name of its own. All keys of the attempt then begin with the name.
"""

import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed import DistStoreError, PrefixStore, Store  # type: ignore[attr-defined]

POLL_SECONDS = 0.05
ASK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """All ranks of an attempt.

    Attributes:
        store: keys of this attempt only.
        hosts: host name of every rank.
    """

    store: Store
    hosts: Sequence[str]


def meet(store: Store, rank: int, world_size: int, *, seconds: float) -> Meeting:
    """Wait for all ranks; called by each of them.

    Args:
        store: of the launcher; other processes may have written to it before.
        seconds: longest wait.

    Raises:
        DistStoreError: some ranks have not come in this time; the message names them.
    """
    limit = time.monotonic() + seconds
    attempt = _welcome_all(store, world_size, limit) if rank == 0 else _ask(store, rank, limit)
    own = PrefixStore(attempt, store)
    own.set(f"host/{rank}", socket.gethostname())
    return Meeting(store=own, hosts=[name.decode() for name in own.multi_get([f"host/{n}" for n in range(world_size)])])


def _welcome_all(store: Store, world_size: int, limit: float) -> str:
    """Answer every question, also those of processes that have ended, until all ranks of this attempt have come."""
    attempt, missing = f"attempt-{uuid.uuid4().hex}", set(range(1, world_size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{attempt}/come/{rank}"]):
                missing.remove(rank)
            elif store.check([f"ask/{rank}"]):
                asked = store.get(f"ask/{rank}").decode()
                store.delete_key(f"ask/{rank}")  # a rank whose question is removed asks again
                store.set(f"answer/{asked}", attempt)
        _check_time(
            limit, f"ranks {', '.join(map(str, sorted(missing)))} of {world_size} have not come" if missing else ""
        )
    return attempt


def _ask(store: Store, rank: int, limit: float) -> str:
    own = uuid.uuid4().hex
    asked = 0.0
    while not store.check([f"answer/{own}"]):
        if time.monotonic() - asked > ASK_SECONDS:
            store.set(f"ask/{rank}", own)
            asked = time.monotonic()
        _check_time(limit, "rank 0 has not answered")
    attempt = store.get(f"answer/{own}").decode()
    store.set(f"{attempt}/come/{rank}", "")
    return attempt


def _check_time(limit: float, what: str) -> None:
    if what and time.monotonic() > limit:
        raise DistStoreError(what)
    time.sleep(POLL_SECONDS)
