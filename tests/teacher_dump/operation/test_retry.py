"""A fault that may pass is no verdict for ever: waiting, stopping without a verdict, and doing shards again."""

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alignkd.storage.write.replace
import alignkd.vlm.data.images
import alignkd.vlm.patience
from alignkd.storage import StoreError, StoreReader, open_writer, verify_store
from alignkd.storage.tools.gc import collect_garbage
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.retry import COMMAND
from alignkd.vlm.data.images import read_image_bytes
from alignkd.vlm.errors import InputError
from alignkd.vlm.patience import PAUSES, TransientReadError

MakeJob = Callable[..., DumpJob]


@pytest.fixture
def images(golden_images: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for file in golden_images.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def make(make_job: MakeJob, images: Path) -> MakeJob:
    """As `make_job`, with images that a test may take away."""

    def make(*arguments: Any, **settings: Any) -> DumpJob:
        job = make_job(*arguments, **settings)
        return replace(job, data=(replace(job.data[0], images=images),))

    return make


def an_image(job: DumpJob) -> Path:
    assert job.data[0].images is not None
    entries = json.loads(job.data[0].path.read_text())
    return job.data[0].images / next(entry["image"] for entry in entries if "image" in entry)


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_a_restored_file_gives_the_store_that_it_would_have_given_at_first(
    make: MakeJob, tmp_path: Path, backend: str
) -> None:
    job = make(backend=backend)
    expected = root_hash_of(replace(job, store=job.store.model_copy(update={"path": tmp_path / "whole"})))
    image = an_image(job)
    image.rename(tmp_path / "away")
    first = dump(job)
    assert first.retryable == len(first.quarantined) > 0
    assert all(COMMAND in reason for _, _, reason in first.quarantined)
    store = job.store.path
    before, open_reader = tree(store), StoreReader(store)

    heard: list[str] = []
    again = replace(job, retry_unusable=True, control=DumpControl(notice=heard.append))
    assert dump(again).shards_written == 0 and tree(store) == before  # the file is still away
    assert heard[0].startswith(f"unusable samples that can be prepared now: 0 of {first.retryable};")

    (tmp_path / "away").rename(image)
    result = dump(again)
    assert result.quarantined == [] and 0 < result.shards_written <= len(first.quarantined) and result.retryable == 0
    assert StoreReader(store).root_hash() == expected and verify_store(store, deep=True).ok
    assert collect_garbage(store) == [] and dump(again).shards_written == 0
    with pytest.raises(StoreError, match="was done again since this process opened the store"):
        [open_reader[number] for number in range(len(open_reader))]


def test_what_the_data_decide_is_not_tried_again(make: MakeJob, golden: Path) -> None:
    entries = json.loads((golden / "v1.json").read_text())
    job = make([*entries, {"id": "odd", "conversations": []}], max_tokens=400)
    first = dump(job)
    assert len(first.quarantined) >= 1 and first.retryable == 0
    assert dump(replace(job, retry_unusable=True)).shards_written == 0


def test_a_killed_retry_leaves_the_old_shard_or_the_new_one(
    make: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(shard_size=4)
    expected = root_hash_of(replace(job, store=job.store.model_copy(update={"path": tmp_path / "whole"})))
    image, away = an_image(job), tmp_path / "away"
    image.rename(away)
    dump(job)
    away.rename(image)
    old, store = StoreReader(job.store.path).root_hash(), job.store.path
    steps = [
        (alignkd.storage.write.replace, "fsync_path"),
        (alignkd.storage.write.replace, "replace_durably"),
        (alignkd.storage.write.replace, "_remove_unnamed"),
    ]
    for place, (module, step) in enumerate(steps):
        child = os.fork()
        if not child:
            monkeypatch.setattr(module, step, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
            dump(replace(job, retry_unusable=True))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert StoreReader(store).root_hash() == (expected if place == 2 else old)
        assert verify_store(store, deep=True).ok
    assert len(list((Path(store) / "shards").glob("*/"))) == 4  # the one in force and three that no record names
    assert len([left for left in collect_garbage(store) if left.state == "removed"]) == 3
    assert StoreReader(store).root_hash() == expected and verify_store(store, deep=True).ok


def test_a_shard_in_a_bucket_is_done_again(make: MakeJob, tmp_path: Path, bucket: Any) -> None:
    job = make(shard_size=4, path=bucket.url)
    expected = root_hash_of(replace(job, store=job.store.model_copy(update={"path": tmp_path / "whole"})))
    image, away = an_image(job), tmp_path / "away"
    image.rename(away)
    dump(job)
    reader = StoreReader(bucket.url)
    before = [reader[number].index for number in range(len(reader))]
    away.rename(image)
    assert dump(replace(job, retry_unusable=True)).quarantined == []
    assert StoreReader(bucket.url).root_hash() == expected and verify_store(bucket.url).ok
    # until `gc` the objects of the old shard are there, and a reader that has its record goes on
    assert [reader[number].index for number in range(len(reader))] == before


def test_two_that_redo_a_shard_write_it_once_and_others_see_it_throughout(make: MakeJob, tmp_path: Path) -> None:
    job = make(shard_size=4)
    image, away = an_image(job), tmp_path / "away"
    image.rename(away)
    dump(job)
    away.rename(image)
    manifest = StoreReader(job.store.path).manifest
    one, two = (open_writer(job.store.path, manifest) for _ in range(2))
    for writer in (one, two):
        writer.redo([0])
        assert writer.pending_shards() == [0] and writer.is_pending(0)
    assert open_writer(job.store.path, manifest).pending_shards() == []
    dump(replace(job, retry_unusable=True))
    assert one.pending_shards() == two.pending_shards() == [] and not one.is_pending(0)
    with pytest.raises(StoreError, match="is committed already"):
        two.open_shard(0)


def failing(times: int, number: int) -> Callable[..., Any]:
    """`open_image` that fails so many times first."""
    true, left = alignkd.vlm.data.images.open_image, [times]

    def open_image(images: Path, image: str) -> Any:
        if left[0]:
            left[0] -= 1
            error = OSError(number, os.strerror(number))
            raise alignkd.vlm.data.images.MissingImageError(
                f"{images / image}: {error.strerror}; restore the file"
            ) from error
        return true(images, image)

    return open_image


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_fault_that_passes_is_waited_for_and_one_that_stays_stops_the_dump_without_a_verdict(
    make: MakeJob, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(alignkd.vlm.patience.time, "sleep", waited.append)
    job = make(shard_size=4, data_workers=1)
    monkeypatch.setattr(alignkd.vlm.data.images, "open_image", failing(10**6, number))
    with pytest.raises(TransientReadError, match=rf"{os.strerror(number)}: 7 attempts in \d+ s; run the same command"):
        dump(job)
    assert waited[: len(PAUSES)] == list(PAUSES)
    assert open_writer(job.store.path, StoreReader(job.store.path, allow_incomplete=True).manifest).pending_shards()
    monkeypatch.setattr(alignkd.vlm.data.images, "open_image", failing(len(PAUSES), number))
    assert dump(job).quarantined == []


def test_a_missing_file_is_not_waited_for(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignkd.vlm.patience.time, "sleep", lambda seconds: pytest.fail("waited"))
    for number in (errno.ENOENT, errno.EACCES, errno.EISDIR):
        monkeypatch.setattr(alignkd.vlm.data.images, "open_image", failing(1, number))
        with pytest.raises(alignkd.vlm.data.images.MissingImageError):
            read_image_bytes(images, "coffee.png")


def test_an_unmounted_image_folder_stops_the_dump(
    make: MakeJob, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of it is missing; not one may be listed as unusable for that."""
    job = make(shard_size=4)
    true = alignkd.vlm.data.images.open_image

    def unmounting(folder: Path, image: str) -> Any:
        if not (tmp_path / "unmounted").exists():
            images.rename(tmp_path / "unmounted")
            images.mkdir()
        return true(folder, image)

    monkeypatch.setattr(alignkd.vlm.data.images, "open_image", unmounting)
    with pytest.raises(InputError, match="is another folder since the dump started"):
        dump(job)
    with pytest.raises(InputError, match="which is an empty folder; is it mounted"):
        dump(job)
    assert StoreReader(job.store.path, allow_incomplete=True).quarantined == []


def tree(path: Path | str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(Path(path).rglob("*")) if file.is_file()}


def root_hash_of(job: DumpJob) -> str:
    dump(job)
    return StoreReader(job.store.path).root_hash()
