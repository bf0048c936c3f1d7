"""The cache of remote blocks: what was put is what is read, never above its bound, whoever dies."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage.remote.block_cache import BlockCache, hashed

BLOCK = 1000


def content(number: int, size: int = BLOCK) -> bytes:
    return random.Random(number).randbytes(size)


def read(cache: BlockCache, number: int, start: int = 0, stop: int = BLOCK) -> bytes | None:
    first, second = np.empty((stop - start) // 2, np.uint8), np.empty(stop - start - (stop - start) // 2, np.uint8)
    found = cache.read_into("group", str(number), BLOCK, [first, second], start)
    return first.tobytes() + second.tobytes() if found else None


def disk_use(folder: Path) -> int:
    """Bytes in the blocks and then in drafts, so that none counts twice; files may vanish meanwhile."""
    total = 0
    for part in ("blocks", "drafts"):
        for where, _, names in os.walk(folder / part):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += (Path(where) / name).stat().st_size
    return total


@given(
    operations=st.lists(st.tuples(st.sampled_from(["put", "read", "drop"]), st.integers(0, 7)), max_size=40),
    limit=st.integers(0, 5 * BLOCK),
)
@settings(max_examples=30)
def test_any_use_keeps_the_bound_and_gives_what_was_put(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int]], limit: int
) -> None:
    cache = BlockCache(tmp_path_factory.mktemp("cache"), limit)
    put: set[int] = set()
    for operation, number in operations:
        if operation == "put":
            cache.put("group", str(number), content(number))
            put.add(number)
            assert (read(cache, number) is not None) == (limit >= BLOCK)
        elif operation == "drop":
            cache.drop("group")
            put.clear()
            assert cache.num_bytes() == 0
        else:
            assert read(cache, number, 10, 900) in (None, content(number)[10:900])
            assert number in put or read(cache, number) is None
        assert cache.num_bytes() == disk_use(cache.folder) <= limit


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 4 * BLOCK, touch_seconds=0)
    for number in range(4):
        cache.put("group", str(number), content(number))
        os.utime(tmp_path / "blocks" / "group" / str(number), (1000 + number, 1000 + number))
    assert read(cache, 0) == content(0)
    cache.put("group", "4", content(4))
    kept = {number for number in range(5) if cache.has("group", str(number), BLOCK)}
    assert {0, 4} <= kept and 1 not in kept


def test_a_block_of_another_size_is_not_used(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * BLOCK)
    cache.put("group", "1", content(1))
    [path] = tmp_path.glob("blocks/group/*")
    path.write_bytes(content(1)[:-1])
    assert read(cache, 1) is None and not cache.has("group", "1", BLOCK)
    cache.put("group", "1", content(1))
    assert read(cache, 1) == content(1)


def test_opening_counts_again_and_clears_what_the_dead_left(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 10 * BLOCK)
    for number in range(5):
        cache.put("group", str(number), content(number))
    (tmp_path / "usage").write_bytes(b"")
    draft = tmp_path / "drafts" / ".tmp-block-1-abc"
    draft.mkdir()
    (draft / "block").write_bytes(b"half")
    again = BlockCache(tmp_path, 6 * BLOCK)
    assert not draft.exists()
    again.put("group", "5", content(5))
    again.put("group", "6", content(6))
    assert again.num_bytes() <= 6 * BLOCK


def work_in_child(folder: Path, limit: int, seed: int, rounds: int) -> int:
    """A forked process that reads and puts blocks at random; returns its pid."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        cache, rng = BlockCache(folder, limit), random.Random(seed)
        for _ in range(rounds):
            number = rng.randrange(40)
            found = read(cache, number)
            assert found in (None, content(number))
            if found is None:
                cache.put("group", str(number), content(number))
        code = 0
    finally:
        os._exit(code)


def test_several_processes_stay_below_the_bound_and_one_block_each(tmp_path: Path) -> None:
    limit, processes = 15 * BLOCK, 3
    BlockCache(tmp_path, limit)
    children = [work_in_child(tmp_path, limit, seed, 400) for seed in range(processes)]
    most, running = 0, set(children)
    while running:
        most = max(most, disk_use(tmp_path))
        running -= {child for child in running if os.waitpid(child, os.WNOHANG) == (child, 0)}
    assert 10 * BLOCK < most <= limit + processes * BLOCK
    assert disk_use(tmp_path) <= limit


def test_killed_at_any_time_the_others_go_on(tmp_path: Path) -> None:
    limit, rng = 10 * BLOCK, random.Random(0)
    for seed in range(12):
        child = work_in_child(tmp_path, limit, seed, 100_000)
        time.sleep(rng.uniform(0.01, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    cache = BlockCache(tmp_path, limit)
    assert disk_use(tmp_path) <= limit
    for number in range(40):
        assert read(cache, number) in (None, content(number))
        cache.put("group", str(number), content(number))
        assert read(cache, number) == content(number)
    assert disk_use(tmp_path) <= limit


def test_names_tell_parts_apart() -> None:
    assert hashed("a", "b") != hashed("ab") and hashed("a", 1) == hashed("a", "1")
    assert len(hashed("x" * 5000)) == 32
