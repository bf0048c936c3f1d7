"""The paths in a manifest decide nothing, are found by sample, and follow a store that grows or is joined."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreReader, open_writer
from alignkd.storage.errors import StoreError
from alignkd.storage.schema.manifest import Manifest, parse_manifest
from alignkd.storage.schema.read_from import (
    ImageFolder,
    ReadFrom,
    absolute,
    grown_read_from,
    image_folders,
    joined_read_from,
)
from alignkd.storage.schema.sources import Addition, StoredSource
from alignkd.storage.tools.convert import convert_store
from alignkd.storage.tools.merge import merge_stores

MakeManifest = Callable[..., Manifest]
WriteStore = Callable[..., Path]


def of(*folders: tuple[int, str | None]) -> ReadFrom:
    return ReadFrom(checkpoint="/teacher", images=image_folders(folders))


def found(read_from: ReadFrom | None, indices: range) -> list[str | None]:
    assert read_from is not None
    return [None if (folder := read_from.image_folder(index)) is None else str(folder) for index in indices]


def test_every_sample_has_the_folder_of_its_data_set() -> None:
    read_from = of((0, "/a"), (2, "/a"), (3, None), (5, "/b"))
    assert found(read_from, range(7)) == ["/a"] * 3 + [None] * 2 + ["/b"] * 2
    assert len(read_from.images) == 3 and found(of(), range(2)) == [None, None]
    assert found(grown_read_from(read_from, of((0, "/moved"), (6, "/c")), 6), range(8)) == [
        *["/a"] * 3, None, None, "/b", "/c", "/c",
    ]  # fmt: skip
    assert found(grown_read_from(None, of((0, "/n")), 4), range(6)) == [None] * 4 + ["/n"] * 2
    assert found(grown_read_from(read_from, None, 7), range(7)) == found(read_from, range(7))
    joined = joined_read_from([(0, None), (3, read_from), (10, of((0, "/c"))), (12, of((1, "/d")))])
    assert found(joined, range(14)) == [None] * 3 + found(read_from, range(7)) + ["/c", "/c", None, "/d"]
    assert joined_read_from([(0, None), (3, None)]) is None


def test_paths_that_a_manifest_cannot_hold_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("x/../images") == str(tmp_path / "images") and absolute(Path("/é")) == "/é"
    assert absolute("/a\nb") is None and absolute(b"/\xff".decode("utf-8", "surrogateescape")) is None
    assert absolute("/" + "a" * 5000) is None
    assert image_folders((number, f"/{number:0300d}") for number in range(4000)) == ()


def test_the_paths_are_in_no_hash(tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore) -> None:
    plain, other = make_manifest(), make_manifest(read_from=of((0, "/a")))
    assert plain.whole_hash == other.whole_hash and "read_from" not in plain.model_dump()
    stores = [write_store(tmp_path / name, one) for name, one in (("a", plain), ("b", other))]
    hashes = {StoreReader(store).root_hash() for store in stores}
    assert len(hashes) == 1
    # whoever goes on may find the inputs elsewhere; the paths of the first run stay
    assert open_writer(stores[1], make_manifest(read_from=of((0, "/elsewhere")))).pending_shards() == []
    assert open_writer(stores[0], other).manifest.read_from is None
    again = StoreReader(stores[1]).manifest
    assert again == other and parse_manifest(json.loads(json.dumps(again.model_dump(mode="json"))), "m") == other


def test_grown_converted_and_merged_stores_keep_the_paths(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    first = make_manifest(num_samples=4, read_from=of((0, "/a")))
    store = write_store(tmp_path / "a", first)
    more = StoredSource(name="more", num_samples=3)
    addition = Addition(added="2026-01-01T00:00:00Z", sources=(more,), num_samples=3)
    grown = first.changed(additions=(addition,), read_from=of((0, "/moved"), (4, "/more")))
    writer = open_writer(store, grown)
    assert found(writer.manifest.read_from, range(7)) == ["/a"] * 4 + ["/more"] * 3
    other = make_manifest(num_samples=4, data_fingerprint={"conversations": "c1"}, read_from=of((0, "/b")))
    others = [write_store(tmp_path / "b", other), write_store(tmp_path / "c", first)]
    convert_store(others[0], tmp_path / "tars", "webdataset")
    assert StoreReader(tmp_path / "tars").manifest.read_from == other.read_from
    merge_stores([others[1], others[0]], tmp_path / "both", keep_first=True)
    assert found(StoreReader(tmp_path / "both").manifest.read_from, range(8)) == ["/a"] * 4 + ["/b"] * 4


@pytest.mark.parametrize(
    "read_from",
    [
        {"images": [{"first_sample": 0, "folder": "relative"}]},
        {"images": [{"first_sample": 0, "folder": "/a\nb"}]},
        {"images": [{"first_sample": 1, "folder": "/a"}, {"first_sample": 1, "folder": "/b"}]},
        {"checkpoint": "/" + "a" * 5000},
        {"checkpoint": "org/model"},
        {"home": "/root"},
    ],
)
def test_other_values_are_refused(make_manifest: MakeManifest, read_from: dict[str, Any]) -> None:
    document = json.loads(json.dumps(make_manifest().model_dump(mode="json"))) | {"read_from": read_from}
    with pytest.raises(StoreError, match="m: read_from"):
        parse_manifest(document, "m")


def test_folders_are_listed_once() -> None:
    assert image_folders([(0, "/a"), (4, "/a")]) == (ImageFolder(first_sample=0, folder="/a"),)
