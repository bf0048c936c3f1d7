"""`Record.more` to rows of columns and back."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import StoreError, naming
from alignkd.storage.layouts.stored_target import Rows, StoredTarget, expect
from alignkd.storage.logits.pass_through import encoded
from alignkd.storage.logits.registry import LogitsArrays, check_kind
from alignkd.storage.record.record import Logits, Record, Target
from alignkd.storage.schema.columns.shard import NO_ROW, further_logits, part_name, width_field
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.named import NamedTarget


class FurtherTargets:
    """Encodes and decodes the further targets of one store."""

    def __init__(self, manifest: Manifest) -> None:
        self._targets = manifest.stored_more
        self._stored = {t.name: StoredTarget(t.codec, t.name) for t in self._targets if isinstance(t.codec, str)}
        self._logits = {t.name: further_logits(t, manifest) for t in self._targets if t.kind == "logits"}

    def encode(self, record: Record, rows: Rows, *, with_image: bool) -> None:
        """Add the rows of every further target.

        Raises:
            StoreError: a target that is missing, that the store does not keep, or of another shape.
            RecordError: a codec cannot hold the values.
        """
        if unknown := sorted(record.more.keys() - {target.name for target in self._targets}):
            raise StoreError(f"more has {unknown[0]!r}, the store keeps {self._names()}; give exactly these")
        for target in self._targets:
            values = record.more.get(target.name)
            if (values is None) != (target.needs_image and not record.has_image):
                found = "absent" if values is None else "present"
                raise StoreError(
                    f"more[{target.name!r}] is {found}, the record has {record.num_images} images and the store keeps "
                    f"{target.rows} rows of a pass with {target.forward_pass}; give exactly what the manifest names"
                )
            if values is None:
                continue
            if target.kind == "logits":
                self._encode_logits(target, record, values, rows)
            else:
                self._encode_values(target, record, values, rows, with_image)  # type: ignore[arg-type]

    def widths(self, record: Record) -> dict[str, int]:
        """The record's fields of `records` with the width of each target."""
        found = {}
        for target in self._targets:
            if target.columns is not None:
                values: Any = record.more.get(target.name)
                found[width_field(target)] = NO_ROW if values is None else values.shape[-1]
        return found

    def decode(
        self, read: ReadRows, has_image: bool, names: Collection[str] | None = None
    ) -> dict[str, Target | Logits]:
        """`Record.more` from the rows of each column; only the targets with these names, None: all."""
        more: dict[str, Target | Logits] = {}
        for target in self._targets:
            if (target.needs_image and not has_image) or (names is not None and target.name not in names):
                continue
            if target.kind == "logits":
                more[target.name] = self._logits[target.name].decode(_renamed(read, target))
            else:
                stored = self._stored[target.name]
                more[target.name] = stored.decode(stored.read(read))
        return more

    def _encode_values(self, target: NamedTarget, record: Record, values: Target, rows: Rows, with_image: bool) -> None:
        name = f"more[{target.name!r}]"
        expect(name, values, _shape(target, record, values))
        assert isinstance(target.codec, str)
        if with_image or not target.stored_once:
            self._stored[target.name].put(encoded(target.codec, name, values), rows)

    def _encode_logits(self, target: NamedTarget, record: Record, values: Any, rows: Rows) -> None:
        codec: LogitsArrays = self._logits[target.name]
        assert isinstance(target.codec, LogitsCodec)
        name, N = f"more[{target.name!r}]", len(record.supervised_positions)
        with naming(name):
            check_kind(values, target.codec, codec)
            found = len(values) if isinstance(values, np.ndarray) else values.num_positions
            if found != N:
                raise StoreError(f"has {found} positions, the record supervises {N}")
            rows |= {part_name(target, column): part for column, part in codec.encode(values).items()}

    def _names(self) -> str:
        return ", ".join(target.name for target in self._targets) or "no further targets"


def _shape(target: NamedTarget, record: Record, values: Target) -> tuple[int, ...]:
    """The shape that a record's values must have."""
    P = len(record.vision_positions)
    text = record.sequence_length - P
    numbers: Mapping[str, int] = {
        "tqv_query": len(record.tqv_query_positions),
        "text": text,
        "vision": P,
        "supervised": len(record.supervised_positions),
        "record": 1,
        "image": record.num_images,
        "image_token": P,
        "own": values.shape[0],
    }
    lead = () if target.lead is None else (target.lead,)
    width = {"vision": P, "text": text, None: target.width}[target.columns]
    return (numbers[target.rows], *lead, *(() if width is None else (width,)))


def _renamed(read: ReadRows, target: NamedTarget) -> ReadRows:
    return lambda column: read(part_name(target, column))
