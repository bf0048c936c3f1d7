"""The state of a dump for the page /dump, against `alignkd dump --status` and the commit records."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.browse.index import dump_state as module
from alignkd.pipeline.browse.index.dump_state import DumpWatch, dump_state
from alignkd.pipeline.runs.teacher.dump_status import dump_status
from alignkd.storage import open_writer
from alignkd.storage.errors import StoreError
from alignkd.storage.read.listing import list_unusable
from alignkd.teacher_dump.operation.status import FolderPlace, WorkerStatus


@pytest.fixture
def read_shards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards whose commit records were read."""
    read: list[int] = []
    original = module.load_heads

    def noted(files: Any, shards: Any, *given: Any, **options: Any) -> Any:
        read.extend(shards)
        return original(files, shards, *given, **options)

    monkeypatch.setattr(module, "load_heads", noted)
    return read


def test_progress_rates_and_errors_as_they_come(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any, read_shards: list[int]
) -> None:
    manifest, store = make_manifest(num_samples=14), tmp_path / "store"
    quarantine = (1, 4, 7, 12)
    write_store(store, manifest, shards=[2], quarantine=quarantine)
    place = FolderPlace(store / ".status", "worker-0")
    now = time.time()
    fields: dict[str, Any] = {"worker": "0/2", "shards": (0,), "samples": 6, "in_hand": 2, "total": 8, "errors": 1}
    place.write(WorkerStatus(**fields, rate=2.0, tokens=70, num_bytes=900, started=now - 30, heartbeat=now))
    failed = FolderPlace(store / ".status", "worker-1")
    failed.write(WorkerStatus(worker="1/2", state="failed", rate=3.0, message="out of memory"))
    watch = DumpWatch(store)

    seen = []
    for shard in (None, 0, 3, 1):
        if shard is not None:
            write_store(store, manifest, shards=[shard], quarantine=quarantine)
        state, status = watch.state(), dump_status(store)
        for name in ("store", "state", "shards", "shards_done", "samples", "samples_done", "records", "tokens", "bytes",
                     "errors", "rate", "seconds_left"):  # fmt: skip
            assert getattr(state, name) == getattr(status, name), name
        listed = {(at, sample.index, sample.id, sample.reason) for at, sample in list_unusable(store)}
        assert {(one.shard, one.index, one.id, one.reason) for one in state.unusable} == listed
        assert [one.number for one in state.unusable] == list(reversed(range(len(listed))))
        assert sum(count for _, count in state.reasons) == state.errors == len(listed)
        assert json.loads(json.dumps(state.as_json())) is not None
        seen.append(state)
    assert read_shards == [2, 0, 3, 1]
    # a shard that is done again between two looks
    again, errors = seen[-1].unusable[0].shard, seen[-1].errors
    writer = open_writer(store, manifest)
    writer.redo([again])
    with writer.open_shard(again) as sink:
        for index in writer.planned_samples(again).tolist():
            sink.append(make_record(manifest, index))
        sink.commit()
    state, status = watch.state(), dump_status(store)
    assert state.errors == status.errors < errors and state.tokens == status.tokens
    assert {one.shard for one in state.unusable} == {at for at, _ in list_unusable(store)}
    assert read_shards == [2, 0, 3, 1, again]
    assert [state.done for state in seen] == ["0010", "1010", "1011", "1111"]
    first, last = seen[0], seen[-1]
    assert (first.state, first.rate, last.state, last.seconds_left) == ("running", 2.0, "complete", 0.0)
    newest = last.unusable[: last.errors - seen[-2].errors]
    assert all(one.shard == 1 for one in newest)
    running, ended = first.workers
    assert (running.state, running.failed, running.rate, running.seconds_left) == ("running", False, 2.0, 1.0)
    assert (running.samples, running.total, running.errors, running.tokens, running.bytes) == (6, 8, 1, 70, 900)
    assert running.seconds_running == pytest.approx(30)
    assert (ended.state, ended.failed, ended.message) == ("failed", True, "out of memory")
    assert (ended.rate, ended.seconds_left) == (0.0, None)


def test_a_shard_that_is_gone_and_another_store(
    tmp_path: Path, make_manifest: Any, write_store: Any, read_shards: list[int]
) -> None:
    store = write_store(tmp_path / "store", make_manifest(), quarantine=(4, 7))
    watch = DumpWatch(store)
    assert (watch.state().shards_done, watch.state().errors) == (3, 2)
    (gone,) = {one.shard for one in watch.state().unusable if one.index == 4}
    (store / "commits" / f"{gone:08d}.json").unlink()
    assert watch.state() == dump_state(store)
    assert 4 not in {one.index for one in watch.state().unusable}
    write_store(store, make_manifest())
    assert watch.state().shards_done == 3 and 4 not in {one.index for one in watch.state().unusable}
    (store / "manifest.json").unlink()
    with pytest.raises(StoreError):
        watch.state()
