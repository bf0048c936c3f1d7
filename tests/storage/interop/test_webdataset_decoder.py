"""Tars that webdataset reads, decoded."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import Codecs, CorruptStoreError, LogitsCodec, Manifest, StoreError, StoreReader, as_float32
from alignkd.storage.interop.webdataset_decoder import webdataset_decoder
from alignkd.storage.schema.targets.named import NamedTarget

TAR = "shards/00000000/00000000.tar"


@pytest.fixture(params=["fixed", "ragged"])
def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
) -> Path:
    logits = LogitsCodec(kind="topk", top_k=4)
    ragged = request.param == "ragged"
    codecs = Codecs(
        attention="sqrt_u8",
        vision_top="int8_channel",
        vision_all="int8_channel" if ragged else "bfloat16",
        logits=logits,
    )
    shapes = make_manifest().shapes.model_copy(update={"vision_tokens": None if ragged else 5})
    further = NamedTarget(name="hidden", kind="values", codec="int8_group", rows="vision", layers=(0, 2), width=70)
    manifest = make_manifest(
        codecs=codecs,
        shapes=shapes,
        more=(further,) if ragged else (),
        backend="webdataset",
        inputs="embed",
        shard_size=10,
    )
    return write_store(tmp_path / "store", manifest)


@pytest.mark.parametrize("source", ["store", "tar", "manifest", "pickled"])
def test_samples_are_what_our_reader_decodes(store: Path, source: str) -> None:
    import webdataset  # type: ignore[import-untyped]  # imports torch

    reader = StoreReader(store)
    sources: dict[str, Any] = {"store": store, "tar": str(store / TAR), "manifest": reader.manifest}
    decoder = webdataset_decoder(sources.get(source, store))
    if source == "pickled":
        decoder = pickle.loads(pickle.dumps(decoder))
    dataset = webdataset.WebDataset(str(store / TAR), shardshuffle=False, empty_check=False).map(decoder)
    samples = {sample["__key__"]: sample for sample in dataset}
    assert len(samples) == 10
    for record in reader:
        sample = samples[f"{record.index:09d}"]
        assert sample["json"]["conversations"] == record.conversations
        assert not any(name.endswith((".npy", "_scale")) for name in sample)
        np.testing.assert_array_equal(sample["input_ids"], record.input_ids)
        np.testing.assert_array_equal(sample["entry_logprobs"], record.logits.logprobs)  # type: ignore[union-attr]
        if not record.has_image:
            assert "attention" not in sample
            continue
        brought = samples[sample["json"]["image_record"]]
        for found, target in (
            (sample["attention"], record.attention),
            (sample["vision_top_embeddings"], record.vision_top_embeddings),
            (brought["vision_embeddings"], record.vision_embeddings_float32),
            *((sample[name], target) for name, target in record.more.items()),
        ):
            assert found.dtype == np.float32 and target is not None
            np.testing.assert_array_equal(found.ravel(), as_float32(target).ravel())  # type: ignore[arg-type]
        assert record.more.keys() == {target.name for target in reader.manifest.more}
        assert isinstance(brought["bin"], bytes)


def test_nothing_is_unpickled_and_damage_is_named(store: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.array([{"a": 1}], object))
    decoder = webdataset_decoder(store)
    for value in (array.getvalue(), b"\x93NUMPY", b"PK\x03\x04", pickle.dumps([1])):
        with pytest.raises(CorruptStoreError, match=r"^x.tar: 000000003.input_ids.npy: .*shards verify"):
            decoder({"__key__": "000000003", "__url__": "x.tar", "input_ids.npy": value})
    with pytest.raises(CorruptStoreError, match=r"000000003.json: "):
        decoder({"__key__": "000000003", "json": b"{"})


def test_another_tar_is_refused(tmp_path: Path, store: Path) -> None:
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.add(store / "manifest.json", "manifest.json")
    with pytest.raises(StoreError, match=r"other.tar: does not begin with __store__/manifest.json; give a tar"):
        webdataset_decoder(other)
    other.write_bytes(b"no tar")
    with pytest.raises(CorruptStoreError, match=r"other.tar: "):
        webdataset_decoder(other)


def test_samples_that_are_decoded_already_are_refused(store: Path) -> None:
    import webdataset

    dataset = webdataset.WebDataset(str(store / TAR), shardshuffle=False, empty_check=False).decode()
    with pytest.raises(StoreError, match=r"is decoded already; use this decoder in place of `.decode\(\)`"):
        list(dataset.map(webdataset_decoder(store)))


def test_a_store_without_tars_is_refused(
    tmp_path: Path, make_manifest: Callable[..., Manifest], write_store: Callable[..., Path]
) -> None:
    path = write_store(tmp_path / "zarr", make_manifest(backend="zarr"))
    with pytest.raises(StoreError, match="backend of the store is 'zarr', expected 'webdataset'; convert the store"):
        webdataset_decoder(path)
