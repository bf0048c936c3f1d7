"""Which target a stored array belongs to, and the bytes that each target takes."""

from collections.abc import Mapping
from typing import Final

from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.columns.shard import GROUPS, Column, columns_of
from alignkd.storage.schema.targets.attention import NAMES
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE, EVIDENCE, FULL, REMOVED
from alignkd.storage.tools.stats import payload_bytes

TARGETS: Final = ("attention", "vision_top", "vision_all", "logits")
COUNTERFACTUAL: Final = "counterfactual"
# what is not a target: texts, ids, positions
INPUTS: Final = "inputs"
_INPUT_GROUPS = {"record", *GROUPS} - {"entry", "top", "top_scale", "image", "image_token", "attention"}
_OF_GROUP: Mapping[str, str] = {
    **dict.fromkeys(("attention", *NAMES.values()), "attention"),
    **dict.fromkeys((FULL, REMOVED, ADVANTAGE, EVIDENCE, f"{FULL}_entry", f"{REMOVED}_entry"), COUNTERFACTUAL),
    **dict.fromkeys(("top", "top_scale"), "vision_top"),
    **dict.fromkeys(("image", "image_token"), "vision_all"),
    "entry": "logits",
}


def target_of(column: Column) -> str:
    """What a stored array belongs to: one of `TARGETS`, `COUNTERFACTUAL`, another further target, or `INPUTS`."""
    if column.group == "supervised" and column.name != "supervised_positions":
        return "logits"
    if column.group in _INPUT_GROUPS:
        return INPUTS
    return _OF_GROUP.get(column.group, column.group.removesuffix("_entry"))


def bytes_per_record(reader: StoreReader) -> dict[str, float]:
    """Target -> mean bytes of a record in the first shard that has any, without padding, headers and indexes.

    One shard suffices for an estimate, because the order of the samples is random in most stores.

    Raises:
        CorruptStoreError: a table of the shard is damaged.
    """
    manifest = reader.manifest
    commit = next((found for found in reader.commits if found.num_records), None)
    if commit is None:
        return {}
    tables = OpenShard(reader.files, manifest, RecordCodec(manifest), commit).tables
    found: dict[str, float] = {}
    for column in columns_of(manifest):
        target = target_of(column)
        found[target] = found.get(target, 0.0) + payload_bytes(tables, column) / commit.num_records
    return found
