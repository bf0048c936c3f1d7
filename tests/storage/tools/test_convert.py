"""Converting is lossless, goes on after a stop, and comes back to the same bytes."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Codecs, LogitsCodec, StoreError, StoreReader, open_writer, verify_store
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.storage.tools.convert import convert_store

TreeBytes = Callable[[Path], dict[str, bytes]]
COMPACT = Codecs(
    attention="sqrt_u8",
    vision_top="from_all",
    vision_all="int8_channel",
    logits=LogitsCodec(kind="nucleus", p=0.9, min_entries=2, max_entries=20),
)
HIDDEN = Codecs(
    attention="bfloat16",
    attention_pairs="tqt",
    vision_top="int8_channel",
    vision_all="none",
    logits=LogitsCodec(kind="hidden", dtype="int8_group"),
)


@pytest.mark.parametrize(("codecs", "inputs"), [(COMPACT, "embed"), (HIDDEN, "reference")])
def test_there_and_back_is_byte_identical(
    tmp_path: Path, make_manifest: Any, write_store: Any, tree_bytes: TreeBytes, codecs: Codecs, inputs: str
) -> None:
    content = b"a tokenizer"
    digest = hashlib.sha256(content).hexdigest()
    manifest = make_manifest(
        codecs=codecs,
        inputs=inputs,
        attachments={"tokenizer.model": digest},
        created_with={"torch": "2"},
        shard_size=6,
    )
    open_writer(tmp_path / "one", manifest, {"tokenizer.model": content})
    one = write_store(tmp_path / "one", manifest, quarantine=(4, 7))
    counted = []
    report = convert_store(one, tmp_path / "two", "webdataset", counted.append)
    assert (report.shards_written, report.num_records, report.num_quarantined) == (2, 8, 2) and sum(counted) == 10
    convert_store(tmp_path / "two", tmp_path / "three", "zarr")
    assert tree_bytes(tmp_path / "three") == tree_bytes(one)
    two = StoreReader(tmp_path / "two")
    assert diff_stores(StoreReader(one), two).equal and two.attachment("tokenizer.model").read_bytes() == content
    assert two.quarantined == StoreReader(one).quarantined and verify_store(tmp_path / "two", deep=True).ok


def test_a_stopped_conversion_goes_on_to_the_same_bytes(
    small_store: Path, tmp_path: Path, tree_bytes: TreeBytes
) -> None:
    done = 0

    def stop(samples: int) -> None:
        nonlocal done
        done += samples
        if done == 6:  # in the second shard
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_store(small_store, tmp_path / "stopped", "webdataset", stop)
    assert len(list((tmp_path / "stopped" / "commits").iterdir())) == 1
    counted: list[int] = []
    assert convert_store(small_store, tmp_path / "stopped", "webdataset", counted.append).shards_written == 2
    assert counted[0] == 4 and sum(counted) == 10  # the first shard counts as done
    convert_store(small_store, tmp_path / "whole", "webdataset")
    assert tree_bytes(tmp_path / "stopped") == tree_bytes(tmp_path / "whole")
    assert convert_store(small_store, tmp_path / "whole", "webdataset").shards_written == 0


def test_refusals(small_store: Path, tmp_path: Path, make_manifest: Any, write_store: Any) -> None:
    with pytest.raises(StoreError, match="is both source and target"):
        convert_store(small_store, small_store / ".." / small_store.name, "webdataset")
    write_store(tmp_path / "other", make_manifest(seed=9, backend="webdataset"))
    with pytest.raises(StoreError, match="seed is 9 in the store, 1 asked for"):
        convert_store(small_store, tmp_path / "other", "webdataset")
    partial = write_store(tmp_path / "partial", make_manifest(), shards=(0,))
    with pytest.raises(StoreError, match="1 of 3 shards committed"):
        convert_store(partial, tmp_path / "none", "zarr")
    assert not (tmp_path / "none").exists()
