"""The index of a small store against a plain scan of its records."""

from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.browse.index.dump_state import dump_state
from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import open_index
from alignkd.storage.read.store import StoreReader


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_an_index_is_the_same_when_it_is_opened_again(
    backend: str, tmp_path: Path, make_manifest: Any, write_store: Any
) -> None:
    store = write_store(tmp_path / "store", make_manifest(backend=backend), quarantine=(4, 7))
    reader = StoreReader(store)
    with open_index(reader) as index:
        assert index.wait(20)
        state = index.state()
        assert state.problems == () and state.indexed == state.figured == state.total == 8
        page = index.page()
        assert [row["position"] for row in page.rows] == [*range(8), None, None]
        assert index.page(Filter(text="\u0447\u044c\u0435")).matching == 8
    with open_index(reader) as index:
        assert index.wait(20)
        assert index.page() == page
    assert dump_state(store).errors == 2
