"""What a zarr library finds in a store: one group, what each array holds, and damage that shows."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from alignkd.storage import Codecs, LogitsCodec, Manifest, StoreReader, verify_store
from alignkd.storage.schema.columns.shard import columns_of
from alignkd.storage.schema.targets.named import NamedTarget

MORE = (
    NamedTarget(name="hidden", kind="values", codec="int8_group", rows="vision", layers=(0, 2), width=70),
    NamedTarget(name="blind", kind="logits", codec=LogitsCodec(kind="full"), rows="supervised"),
)


@pytest.fixture
def store(tmp_path: Path, make_manifest: Callable[..., Manifest], write_store: Callable[..., Path]) -> Path:
    codecs = Codecs(
        attention="sqrt_u8", vision_top="from_all", vision_all="int8_channel", logits=LogitsCodec(kind="topk", top_k=3)
    )
    shapes = make_manifest().shapes.model_copy(update={"vision_tokens": None})
    return write_store(tmp_path / "store", make_manifest(codecs=codecs, shapes=shapes, more=MORE))


def test_a_store_is_one_group(store: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # manifest.json and commits/ are no zarr objects
        group: Any = zarr.open_group(store, mode="r")
        assert sorted(group["shards"]) == ["00000000", "00000001", "00000002"]
    reader = StoreReader(store)
    first = group["shards/00000000/input_ids"][: len(reader[0].input_ids)]
    np.testing.assert_array_equal(first, reader[0].input_ids)
    for path in (store / "zarr.json", store / "shards" / "zarr.json"):
        assert json.loads(path.read_bytes()) == {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def test_the_group_names_the_parts_of_each_target(store: Path) -> None:
    group: Any = zarr.open_group(store / "shards" / "00000000", mode="r")
    targets = {target["name"]: target for target in group.attrs["targets"]}
    manifest = StoreReader(store).manifest
    assert list(targets) == [target.name for target in manifest.targets]
    for target in manifest.targets:
        found = targets[target.name]
        assert found["parts"] and set(found["parts"].values()) < set(group)
        assert {name: found[name] for name in target.model_dump(mode="json")} == target.model_dump(mode="json")
    assert targets["attention"]["parts"] == {"": "attention", "scale": "attention_scale"}
    assert targets["vision_top"]["parts"] == {"index": "vision_top_index"}
    assert targets["blind"]["parts"] == {"logits": "blind_logits"}
    assert targets["logits"]["parts"]["entry_ids"] == "entry_ids" and "2^-" in targets["logits"]["error_bound"]
    for name in ("attention", "vision_embeddings", "hidden"):
        assert group[name].attrs["target"]["parts"] == {"": name, "scale": f"{name}_scale"}


def test_a_lost_file_shows_values_that_are_no_datum(store: Path) -> None:
    folder = store / "shards" / "00000000"
    columns = {column.name: column for column in columns_of(StoreReader(store).manifest)}
    before: Any = {name: zarr.open_array(folder / name, mode="r")[:] for name in columns}
    for path in folder.glob("*/c*"):
        path.unlink()
    seen = set()
    for name, column in columns.items():
        lost: Any = zarr.open_array(folder / name, mode="r")[:]
        if column.variable_width or column.dtype == np.uint8:
            assert not lost.any()
            continue
        fill = np.asarray(column.fill_value, column.dtype)
        assert lost.dtype == column.dtype and lost.size
        np.testing.assert_array_equal(lost, np.full_like(lost, fill))
        if name != "records":  # -1 is a number of some fields, not of all
            assert not (before[name] == fill).any(), name
        seen.add(column.dtype.str)
    assert seen == {"<i8", "<i4", "|i1", "<f2", "<f4", "<u2", "<u4"}
    assert not verify_store(store).ok
