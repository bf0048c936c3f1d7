"""Numbers of each record that follow from a shard's tables."""

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.layouts.tables import ShardTables
from alignkd.storage.schema.manifest import Manifest

# rows in a group, or a field of `records`
LENGTHS = ("token", "vision", "query", "supervised", "top", "num_images", "length")


def lengths_of(tables: ShardTables, manifest: Manifest) -> NDArray[np.int32]:
    """The numbers `LENGTHS` of each record of a shard, int32 [numbers, records]."""
    derived = _of_schema2(tables, manifest) if manifest.schema_version == 2 else {}
    found = [derived[name] if name in derived else _rows(tables, name) for name in LENGTHS]
    return np.stack(found).astype(np.int32)


def _rows(tables: ShardTables, name: str) -> NDArray[np.int64]:
    return tables.field(name) if name in tables.fields else np.diff(tables.ends(name))


def _of_schema2(tables: ShardTables, manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """Every image has the same number of tokens there, and one row of `top` holds all selected tokens."""
    shapes, vision = manifest.shapes, _rows(tables, "vision")
    images = vision // (shapes.vision_tokens or 1)
    return {
        "top": _rows(tables, "top") * shapes.vision_top_tokens,
        "num_images": images,
        "length": _rows(tables, "token") + vision - images,
    }
