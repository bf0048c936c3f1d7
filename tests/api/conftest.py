"""The made-up stores of tests/storage, for the public names."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


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
