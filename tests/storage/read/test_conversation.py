"""`StoreReader.conversation`: the turns of a record without its targets."""

from pathlib import Path

import pytest
from made_records import MakeManifest, WriteStore

from alignkd.storage import CorruptStoreError, StoreReader


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_the_conversation_is_that_of_the_record(
    backend: str, tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    reader = StoreReader(write_store(tmp_path / "store", make_manifest(backend=backend), quarantine=(4,)))
    assert [reader.conversation(at) for at in range(len(reader))] == [record.conversations for record in reader]
    assert reader.conversation(-1) == reader[-1].conversations
    with pytest.raises(IndexError):
        reader.conversation(len(reader))


def test_damaged_targets_do_not_matter_and_a_damaged_text_does(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    store = write_store(tmp_path / "store", make_manifest(backend="zarr"))

    def damage(column: str) -> None:
        for file in (store / "shards").glob(f"*/{column}/c*"):
            file.write_bytes(bytes(255 - byte for byte in file.read_bytes()))

    reader = StoreReader(store)
    position = int(reader.has_image.argmax())
    whole = reader[position].conversations
    damage("attention")
    assert StoreReader(store).conversation(position) == whole
    with pytest.raises(CorruptStoreError, match="attention"):
        StoreReader(store)[position]
    damage("text")
    with pytest.raises(CorruptStoreError, match="text"):
        StoreReader(store).conversation(position)
