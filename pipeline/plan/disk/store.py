"""Predicts how many bytes a store will take, from the rows of every sample; writes nothing.

Each layout predicts the files of its shards (`Backend.predicted_bytes`). Here are the rows that go into them, which
target a stored array belongs to, and what every store has: commit records, manifest and attachments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import tee

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.plan.disk.counterfactual import counterfactual_rows
from alignkd.pipeline.plan.disk.samples import DataSize, SampleRows
from alignkd.pipeline.plan.disk.vision import vision_rows
from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.layouts.prediction import PredictedShard, ShardRows
from alignkd.storage.layouts.registry import get_backend
from alignkd.storage.schema.columns.shard import columns_of, width_field
from alignkd.storage.schema.commit_record import CommitRecord, FileEntry, Totals, shard_name
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.sealed_json import seal
from alignkd.storage.schema.targets.attention import attention_targets
from alignkd.storage.tools.target_bytes import INPUTS, TARGETS, target_of

# what is neither a target nor inputs: indexes, commit records, manifest; files of the store as a whole
OVERHEAD, ATTACHMENTS = "overhead", "attachments"
_SHA256 = "0" * 64


@dataclass(frozen=True, kw_only=True)
class StoreSize:
    """Bytes of a whole store.

    Attributes:
        by_target: bytes of each of `TARGETS`, `inputs`, `overhead` and `attachments`; of a store with a counterfactual
            pass also `counterfactual`; of each other further target by its name.
    """

    by_target: Mapping[str, int]

    @property
    def of_targets(self) -> int:
        """Bytes of all targets."""
        return sum(size for name, size in self.by_target.items() if name not in (INPUTS, OVERHEAD, ATTACHMENTS))

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.by_target.values())


def store_size(
    data: DataSize,
    manifest: Manifest,
    *,
    entries_per_position: float,
    attachments: Mapping[str, int],
    overhead: bool = True,
) -> StoreSize:
    """Predict the bytes of a store with this manifest.

    Args:
        entries_per_position: kept tokens of `topk`, `nucleus` and `sampled` logits at a supervised position.
        attachments: bytes of the store-level files.
        overhead: False leaves out descriptions and commit records; counting them takes time.
    """
    columns = columns_of(manifest)
    samples, again = tee(data.rows.of_shard(shard) for shard in range(len(data.shard_sizes)))
    shards = (_shard_rows(manifest, rows, rows_of_groups(manifest, rows, entries_per_position)) for rows in again)
    backend = get_backend(manifest.backend)
    predicted = backend.predicted_bytes(manifest, columns, shards, overhead=overhead)
    targets = {column.name: target_of(column) for column in columns}
    counted: dict[str, float] = {INPUTS: 0, OVERHEAD: 0}
    commit = 0
    for rows, shard, planned in zip(samples, predicted, data.shard_sizes, strict=True):
        for name, size in shard.columns.items():
            counted[targets[name]] = counted.get(targets[name], 0) + size
        if overhead and not (commit and shard.arrays):  # a record with arrays is long, and its length hardly differs
            commit = _commit_bytes(rows, shard)
        counted[OVERHEAD] += shard.overhead + commit + data.unusable_bytes * planned / max(1, data.counted)
    scale = data.num_samples / max(1, data.counted)
    sizes = {target: round(size * scale) for target, size in counted.items()}
    sizes[OVERHEAD] += len(seal(manifest.model_dump())) + sum(map(len, backend.store_files.values()))
    return StoreSize(by_target={**dict.fromkeys(TARGETS, 0), **sizes, ATTACHMENTS: sum(attachments.values())})


def rows_of_groups(manifest: Manifest, rows: SampleRows, entries_per_position: float) -> dict[str, NDArray[np.int64]]:
    """Rows that each sample brings to each group of arrays, int64 [samples]."""
    of_layers = {"tqv": rows.queries, "vqv": rows.vision}
    has_image, brings = rows.images > 0, _brings_image(rows)
    pairs = manifest.codecs.attention_pairs
    # attention to vision tokens is a block of columns for each image where all have the same number of tokens
    blocks = rows.images if manifest.shapes.vision_tokens is not None else np.where(has_image, 1, 0)
    attention = {
        "tqv": blocks * rows.queries,
        "vqv": blocks * rows.vision,
        "tqt": np.where(has_image, rows.queries, 0),
    }
    return {
        "record": np.ones_like(rows.tokens),
        "text": rows.text,
        "id": rows.id,
        "token": rows.tokens,
        "vision": rows.vision,
        "query": rows.queries,
        "supervised": rows.supervised,
        "entry": np.rint(rows.supervised * entries_per_position).astype(np.int64),
        "attention": attention[pairs] if manifest.codecs.attention not in NOT_STORED else np.zeros_like(rows.tokens),
        "shown": rows.images,
        "top": np.minimum(rows.vision, manifest.shapes.vision_top_tokens),
        "top_scale": np.where(has_image, 1, 0),
        "image": np.where(brings, rows.images, 0),
        "image_token": np.where(brings, rows.vision, 0),
        "image_bytes": np.where(brings, rows.image_bytes, 0),
        **{
            target.name: np.where(has_image, of_layers[pairs], 0)
            for pairs, target in attention_targets(manifest.stored_more).items()
        },
        **counterfactual_rows(manifest, rows),
        **{target.name: np.ones_like(rows.tokens) for target in manifest.stored_more if target.rows == "record"},
        **vision_rows(manifest, rows),
    }


def _brings_image(rows: SampleRows) -> NDArray[np.bool_]:
    """Which samples are the first of the shard to show their images, bool [samples]."""
    _, first = np.unique(rows.image, return_index=True)
    brings = np.zeros(len(rows), np.bool_)
    brings[first] = True
    return brings & (rows.images > 0)


def _shard_rows(manifest: Manifest, rows: SampleRows, groups: Mapping[str, NDArray[np.int64]]) -> ShardRows:
    """The rows of a shard as a layout needs them to predict its files."""
    text = rows.length - rows.vision
    widths = text if manifest.codecs.attention_pairs == "tqt" else rows.vision
    return ShardRows(
        groups=groups,
        has_image=rows.images > 0,
        widths=widths,
        more_widths={width_field(target): rows.vision for target in manifest.stored_more if target.columns == "vision"},
    )


def _commit_bytes(rows: SampleRows, shard: PredictedShard) -> int:
    """Length of the commit record of a shard without unusable samples."""
    record = CommitRecord(
        shard=0,
        manifest_hash=_SHA256,
        num_records=len(rows),
        quarantined=(),
        totals=Totals(
            tokens=int(rows.tokens.sum()),
            queries=int(rows.queries.sum()),
            supervised=int(rows.supervised.sum()),
            images=int(rows.images.sum()),
            bytes=sum(shard.files.values()),
        ),
        folder=shard_name(0),
        arrays=shard.arrays,
        files=tuple(FileEntry(path=path, bytes=size, sha256=_SHA256) for path, size in shard.files.items() if size),
    )
    return len(seal(record.document()))
