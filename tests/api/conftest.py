"""The made-up stores of tests/storage, and a dump of the golden teacher, for the public names."""

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

import alignkd


def _conftest_of(room: str) -> ModuleType:
    path = Path(__file__).parents[1] / room / "conftest.py"
    spec = spec_from_file_location(f"{room}_fixtures", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_STORAGE = _conftest_of("storage")
make_manifest, make_record, write_store = _STORAGE.make_manifest, _STORAGE.make_record, _STORAGE.write_store


@pytest.fixture(params=["zarr", "webdataset"])
def store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_manifest: Callable[..., object],
    write_store: Callable[..., Path],
) -> Path:
    """Ten records in three shards, in each layout."""
    return write_store(tmp_path / "store", make_manifest(backend=request.param))


@pytest.fixture(scope="session")
def dumped(golden: Path, golden_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store-zarr` and `store-tar`: compact targets of records with no, one and two images."""
    folder = tmp_path_factory.mktemp("dumped")
    entries = json.loads((golden / "v1.json").read_text())
    images = sorted({entry["image"] for entry in entries if "image" in entry})
    turns = [("human", "<image>\n<image>\nWhich is larger?"), ("gpt", "the second one")]
    for number, names in enumerate((images[:2], images[1::-1], images[:2])):
        conversation = [{"from": who, "value": f"{text} ({number})"} for who, text in turns]
        entries.append({"id": f"two-{number}", "image": names, "conversations": conversation})
    data = folder / "data.json"
    data.write_text(json.dumps(entries))
    job = alignkd.dump_job(
        data={"conversations": data, "images": golden_images},
        teacher={"checkpoint": str(golden / "teacher"), "vision_config": golden / "clip", "sanity": "off"},
        store={"path": folder / "store-zarr", "profile": "compact", "shard_size": 6},
    )
    assert alignkd.dump(job).num_records == len(entries)
    alignkd.convert(folder / "store-zarr", folder / "store-tar", "webdataset")
    return folder
