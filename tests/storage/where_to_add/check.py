"""Takes a toy codec and a toy layout through the real code: dump side, storage, prediction, student side, commands.

python check.py STORE FOLDER      STORE: any zarr store with attention; FOLDER: for new stores
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignkd.pipeline.cli import main
from alignkd.pipeline.plan.disk.samples import DataSize, SampleRows
from alignkd.pipeline.plan.disk.store import store_size
from alignkd.storage import CorruptStoreError, EncodedArray, Record, StoreReader, as_float32, open_writer, verify_store
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.listing import list_store
from alignkd.storage.record.encoded import error_bound
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.tools.convert import convert_store
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.device_codecs import StoredParts, encode

CODEC, LAYOUT = "milli", "npys"


def dumped(record: Record) -> Record:
    """The record as a dump makes it with the toy codec: attention encoded on the device."""
    if record.attention is None:
        return record
    parts = encode(CODEC, torch.from_numpy(as_float32(record.attention)))
    target = StoredParts(codec=CODEC, parts={name: part.numpy() for name, part in parts.items()}).target("attention")
    assert isinstance(target, EncodedArray) and target.same_as(EncodedArray.encode(CODEC, as_float32(record.attention)))
    return Record(**record.__dict__ | {"attention": target})


def write(path: Path, manifest: Manifest, records: dict[int, Record]) -> None:
    writer = open_writer(path, manifest)
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if index in records:
                    sink.append(dumped(records[index]))
                else:
                    sink.quarantine(index, str(index), "not in the source either")
            sink.commit()


def check_student_side(store: StoreReader, records: dict[int, Record]) -> None:
    for record in (store[place] for place in range(len(store))):
        exact, found = records[record.index].attention, record.attention
        if exact is not None:
            assert isinstance(found, EncodedArray)
            coded = EncodedTensor(codec=CODEC, parts={"": torch.from_numpy(found.parts[""])}).decode().numpy()
            assert np.array_equal(coded, as_float32(found))
            assert (np.abs(coded - as_float32(exact)) <= error_bound(found)).all()


def counted(store: StoreReader) -> DataSize:
    """What `alignkd plan` counts from data, taken from the records here."""
    records, codec = [store[place] for place in range(len(store))], RecordCodec(store.manifest)
    images = {record.image_sha256: number for number, record in enumerate(records, 1)}
    numbers: list[dict[str, Any]] = [
        {
            "text": codec.encode(record, with_image=False)["text"].size,
            "id": len(record.id.encode()),
            "tokens": len(record.input_ids),
            "length": record.sequence_length,
            "images": record.num_images,
            "vision": len(record.vision_positions),
            "queries": len(record.tqv_query_positions),
            "supervised": len(record.supervised_positions),
            "image": images[record.image_sha256] if record.has_image else 0,
            "image_bytes": 0,
            "source": 0,
        }
        for record in records
    ]
    columns = {name: np.array([number[name] for number in numbers], np.int64) for name in numbers[0]}
    sizes = [info.num_records for info in list_store(store.path).shards]
    shard = np.repeat(np.arange(len(sizes)), sizes)
    return DataSize(
        num_samples=len(records),
        shard_sizes=tuple(sizes),
        rows=SampleRows(shard=shard, **columns),
        unusable=0,
        unusable_bytes=0,
        exact=True,
    )


def check_prediction(path: Path, store: StoreReader) -> None:
    kept = sum(len(store[place].logits.ids) for place in range(len(store)))  # type: ignore[union-attr]
    per_position = kept / int(store.num_supervised.sum())
    predicted = store_size(counted(store), store.manifest, entries_per_position=per_position, attachments={})
    actual = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert predicted.by_target["attention"] > 0 and abs(predicted.total - actual) < 0.01 * actual, (predicted, actual)


def check_damage_is_found(path: Path) -> None:
    file = next(path.glob("shards/*/rows.npys"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not verify_store(path, deep=True).ok
    try:
        store = StoreReader(path)
        [store[place] for place in range(len(store))]
    except CorruptStoreError as error:
        assert "rows.npys: sha256 is" in str(error)
    else:
        raise AssertionError("the damage was not found")
    file.write_bytes(content)


def run(source: Path, folder: Path) -> None:
    config = StoreConfig(path=str(folder / "toy"), attention=CODEC, backend=LAYOUT)
    old = StoreReader(source)
    codecs = old.manifest.codecs.model_copy(update={"attention": config.attention})
    manifest = old.manifest.model_copy(update={"codecs": codecs, "backend": config.backend})
    records = {record.index: record for record in (old[place] for place in range(len(old)))}
    write(folder / "toy", manifest, records)
    toy = StoreReader(folder / "toy")
    assert toy.manifest == manifest and verify_store(folder / "toy", deep=True).ok
    check_student_side(toy, records)
    check_prediction(folder / "toy", toy)
    convert_store(folder / "toy", folder / "zarr", "zarr")
    main(["shards", "convert", str(folder / "zarr"), str(folder / "back"), "--backend", LAYOUT], standalone_mode=False)
    assert StoreReader(folder / "back").root_hash() == toy.root_hash()
    check_damage_is_found(folder / "toy")


run(Path(sys.argv[1]), Path(sys.argv[2]))
print("all done")
