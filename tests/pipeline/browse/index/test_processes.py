"""Two processes with one index: one writes it, the other follows; a killed one is continued."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prepared_processes import PreparedProcesses

from alignkd.pipeline.browse.index import builder
from alignkd.pipeline.browse.index.builder import IndexState
from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import open_index
from alignkd.storage import open_writer
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.read.store import StoreReader
from alignkd.storage.tools.gc import collect_garbage
from alignkd.storage.tools.verify.verify import verify_store

SCRIPT = """
import json, sys, time
from alignkd.pipeline.browse.index import builder
from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import open_index
from alignkd.storage.read.store import StoreReader
from pathlib import Path

store, pause, ready = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
original = builder.figures_of
def slowly(*given):
    ready.touch()
    time.sleep(pause)
    return original(*given)
builder.figures_of = slowly
builder.SECONDS_PER_TRANSACTION = 0
with open_index(StoreReader(store)) as index:
    assert index.wait(100)
    assert not index.state().problems, index.state().problems
    print(json.dumps([index.page().as_json(), index.positions(Filter(text="aaaa*")).tolist()]))
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[PreparedProcesses]:
    with PreparedProcesses(["alignkd.pipeline.browse.index.store_index"]) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path, make_manifest: Any, write_store: Any) -> Path:
    found: Path = write_store(tmp_path / "store", make_manifest(num_samples=20, shard_size=3), quarantine=(4, 7))
    return found


def answers(store: Path) -> Any:
    with open_index(StoreReader(store)) as index:
        assert index.wait(60) and index.state().problems == ()
        return [index.page(), index.positions(Filter(text="aaaa*")).tolist()]


def test_both_give_the_same_and_one_writes(
    store: Path, tmp_path: Path, processes: PreparedProcesses, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    monkeypatch.setattr(builder, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(builder, "read_rows", lambda *_: pytest.fail("the other process reads the store"))
    (tmp_path / "script.py").write_text(SCRIPT)
    other = processes.start(tmp_path / "script.py", store, 0.1, tmp_path / "ready")
    wait_until((tmp_path / "ready").exists, "the first pass of the other process")
    seen: list[IndexState] = []
    with open_index(StoreReader(store), progress=seen.append) as index:
        assert index.wait(60) and index.state().problems == ()
        assert index.state().figured == 18
        found = [index.page(), index.positions(Filter(text="aaaa*")).tolist()]
    assert other.wait(60) == 0
    assert any(state.figured < 18 for state in seen)
    monkeypatch.undo()
    assert found == answers(store)


def test_a_killed_process_is_continued(
    store: Path, tmp_path: Path, processes: PreparedProcesses, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    other = processes.start(tmp_path / "script.py", store, 0.3, tmp_path / "ready")
    wait_until((tmp_path / "ready").exists, "the first pass of the other process")
    other.kill()
    other.wait(60)
    monkeypatch.setattr(builder, "read_rows", lambda *_: pytest.fail("the first pass is complete"))
    found = answers(store)
    monkeypatch.undo()
    (store / ".browse" / "index.sqlite").unlink()
    assert found == answers(store)


def test_an_index_that_is_closed_early_is_continued(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(store)
    (store / ".browse" / "index.sqlite").unlink()
    monkeypatch.setattr(builder, "SECONDS_PER_TRANSACTION", 0)
    for stop_after in (2, 5, 8, 11):
        states: list[IndexState] = []
        with open_index(StoreReader(store), progress=states.append) as index:
            while len(states) < stop_after and not index.wait(0.001):
                pass
    assert answers(store) == expected


def test_questions_while_the_index_is_made(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is one of a consistent state, in any thread."""
    monkeypatch.setattr(builder, "SECONDS_PER_TRANSACTION", 0)
    expected, texts = answers(store), Filter(text="aaaa*", unusable=False)
    (store / ".browse" / "index.sqlite").unlink()
    indexed: list[int] = []

    def ask() -> None:
        while True:
            is_last = index.wait(0)
            page = index.page(sort="perplexity", descending=True, limit=100)
            assert page.matching == len(page.rows) == page.indexed
            indexed.append(page.indexed)
            assert set(index.positions(texts).tolist()) <= set(expected[1])
            shown = index.histogram(texts, "tokens", 5)
            assert sum(shown.matching) <= sum(shown.counts)
            if is_last:
                return

    with open_index(StoreReader(store)) as index:
        with ThreadPoolExecutor(3) as pool:
            for asked in [pool.submit(ask) for _ in range(3)]:
                asked.result(60)
        assert index.page() == expected[0] and index.positions(Filter(text="aaaa*")).tolist() == expected[1]
    assert max(indexed) == 20


def test_a_dump_goes_on_while_the_index_is_made_and_the_store_is_as_without_it(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any, tree_bytes: Any
) -> None:
    manifest = make_manifest(num_samples=20, shard_size=3)
    store, plain = tmp_path / "store", write_store(tmp_path / "plain", manifest)
    writer = open_writer(store, manifest)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for number, index in enumerate(writer.planned_samples(shard).tolist()):
                sink.append(make_record(manifest, index))
                if number == 1:  # in the middle of a shard
                    with open_index(StoreReader(store, allow_incomplete=True)) as found:
                        assert found.wait(60) and found.state().problems == ()
                        assert found.state().total == 3 * shard
            sink.commit()
    files = {name: data for name, data in tree_bytes(store).items() if not name.startswith(".browse/")}
    assert files == tree_bytes(plain)
    reader = StoreReader(store)
    assert root_hash(reader.files, reader.manifest) == StoreReader(plain).root_hash()
    report = verify_store(store, deep=True)
    assert report.ok and not report.notes and collect_garbage(store) == []
    assert (store / ".browse" / "index.sqlite").exists()


def test_an_index_beside_the_store_or_in_the_cache(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: PreparedProcesses
) -> None:
    monkeypatch.setenv("ALIGNKD_CACHE", str(tmp_path / "cache"))
    expected = answers(store)
    assert not (tmp_path / "cache").exists()
    for left in (store / ".browse").iterdir():
        left.unlink()
    (store / ".browse").rmdir()
    (store / ".browse").write_text("no folder")  # a store that cannot be written to
    assert answers(store) == expected
    (store / ".browse").unlink()
    (store / ".browse").mkdir()
    (store / ".browse" / "index.crc32c").symlink_to(tmp_path / "elsewhere")
    assert answers(store) == expected
    assert not (tmp_path / "elsewhere").exists()
    assert [path.name for path in (store / ".browse").iterdir()] == ["index.crc32c"]
    (folder,) = (tmp_path / "cache" / "browse").iterdir()
    assert folder.name.startswith("store-") and (folder / "index.sqlite").exists()


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_store_in_a_bucket(backend: str, tmp_path: Path, make_manifest: Any, write_store: Any, bucket: Any) -> None:
    """The index lies in the cache; the same answers."""
    manifest, url = make_manifest(backend=backend), bucket.url
    expected = answers(write_store(tmp_path / "store", manifest, quarantine=(4, 7)))
    write_store(url, manifest, quarantine=(4, 7))
    assert answers(url) == answers(url) == expected
    (folder,) = (tmp_path / "cache" / "browse").iterdir()
    assert folder.name.startswith("store-")
    assert not any(".browse" in name for name in bucket.objects())
