"""Memory that is used again is nobody else's by then."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignkd.storage.files import buffers as recycled
from alignkd.storage.files.buffers import empty

BYTE = np.dtype(np.uint8)
SIZE = recycled.SMALLEST


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recycled, "_THREAD", threading.local())


def address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])


def test_dropped_memory_is_used_again() -> None:
    first = address(empty((SIZE,), BYTE))
    assert address(empty((SIZE // 4, 2), np.dtype("<u2"))) == first


@pytest.mark.parametrize(
    "keep",
    [lambda a: a[5:9], lambda a: memoryview(a), lambda a: a.view("<u2").reshape(-1, 2)[0], lambda a: np.frombuffer(a)],
)
def test_whatever_shows_the_bytes_keeps_them(keep: object) -> None:
    array = empty((SIZE,), BYTE)
    first = address(array)
    kept = keep(array)  # type: ignore[operator]
    del array
    assert address(empty((SIZE,), BYTE)) != first
    del kept


@settings(max_examples=50)
@given(
    steps=st.lists(st.tuples(st.integers(SIZE // 2, 4 * SIZE), st.integers(0, 5)), max_size=60),
    kept_bytes=st.integers(0, 12 * SIZE),
)
def test_arrays_that_live_do_not_overlap(steps: list[tuple[int, int]], kept_bytes: int) -> None:
    held: dict[int, tuple[NDArray[np.uint8], int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recycled, "KEPT_BYTES", kept_bytes)
        patch.setattr(recycled, "_THREAD", threading.local())
        for number, (size, place) in enumerate(steps):
            held.pop(place, None)
            array = empty((size,), BYTE)
            array[:] = number % 256
            held[place] = array, number % 256
            assert all((kept == value).all() for kept, value in held.values())
            blocks = getattr(recycled._THREAD, "blocks", [])
            assert len(blocks) <= 1 or sum(map(len, blocks)) <= kept_bytes


def test_a_thread_has_its_own() -> None:
    mine, theirs = empty((SIZE,), BYTE), []
    thread = threading.Thread(target=lambda: theirs.append(empty((SIZE,), BYTE)))
    thread.start()
    thread.join()
    assert address(mine) != address(theirs[0])


@pytest.mark.parametrize("missing", ["cpython", "lock"])
def test_memory_is_not_reused_where_references_are_not_counted(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "lock":
        monkeypatch.setattr(recycled.sys, "_is_gil_enabled", lambda: False, raising=False)
    else:
        monkeypatch.setattr(recycled.sys, "implementation", SimpleNamespace(name="pypy"))
    assert recycled._references_of_unused() is None
    monkeypatch.undo()
    assert recycled._references_of_unused() == recycled._UNUSED == 2
    monkeypatch.setattr(recycled, "_UNUSED", None)
    first = empty((SIZE,), BYTE)
    assert first.base is None and empty((SIZE,), BYTE).base is None
