"""The vision targets of a record to rows of columns and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.storage.errors import StoreError
from alignkd.storage.layouts.stored_target import Rows, StoredTarget, expect
from alignkd.storage.logits.pass_through import encoded
from alignkd.storage.record.images import joined_images, split_images, split_rows, vision_rows
from alignkd.storage.record.record import EncodedArray, Record, Target
from alignkd.storage.schema.manifest import Manifest


class VisionRows:
    """Encodes and decodes `vision_embeddings`, `vision_top_index` and `vision_top_embeddings`."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._shapes = manifest, manifest.shapes
        self._every = StoredTarget(manifest.codecs.vision_all, "vision_embeddings")
        self._top = StoredTarget(manifest.codecs.vision_top, "vision_top_embeddings")

    def encode_top(self, record: Record, rows: Rows) -> None:
        """Add the rows of the selected vision tokens of a record that has them.

        Raises:
            StoreError: other shapes than the store's, or embeddings that are not those of `vision_embeddings`.
            RecordError: a codec cannot hold the values.
        """
        index, top, codec = record.vision_top_index, record.vision_top_embeddings, self._top.codec
        assert index is not None
        K = min(self._shapes.vision_top_tokens, len(record.vision_positions))
        expect("vision_top_index", index, (K,))
        rows["vision_top_index"] = index
        if codec == FROM_ALL:
            _check_from_all(record)
            return
        if top is None:
            raise StoreError(f"vision_top_embeddings is absent, the store's codec for it is {codec}; give it")
        expect("vision_top_embeddings", top, (K, self._shapes.hidden_size))
        self._top.put_whole(encoded(codec, "vision_top_embeddings", top), rows)

    def encode_every(self, record: Record, rows: Rows, *, store: bool) -> None:
        """Check the embeddings of all images of a record that has them, and add their rows if they are to be stored.

        Raises:
            StoreError: other shapes than the store's. RecordError: a codec cannot hold the values.
        """
        every, codec = record.vision_embeddings, self._every.codec
        assert every is not None
        for target, tokens in zip(every, record.tokens_of_image, strict=True):
            expect("vision_embeddings", target, (tokens, self._shapes.hidden_size))
        if store:
            parts = [encoded(codec, "vision_embeddings", target) for target in every]
            self._every.put(joined_images(codec, parts), rows)

    def decode(self, read: ReadRows, tokens_of_image: Sequence[int]) -> dict[str, Any]:
        """The fields of a record with images."""
        if self._manifest.schema_version == 2:
            return self._decode_schema2(read, len(tokens_of_image))
        codec, fields = self._every.codec, dict[str, Any]()
        if codec not in NOT_STORED:
            images = split_images(codec, self._every.read(read), tokens_of_image)
            fields["vision_embeddings"] = tuple(self._every.decode(parts) for parts in images)
        if self._top.codec not in NOT_STORED:
            index = fields["vision_top_index"] = read("vision_top_index")
            fields["vision_top_embeddings"] = (
                vision_rows(fields["vision_embeddings"], index)
                if self._top.codec == FROM_ALL
                else self._top.decode(self._top.read_whole(read))
            )
        return fields

    def _decode_schema2(self, read: ReadRows, num_images: int) -> dict[str, Any]:
        """Rows of schema 2 are whole images, and all selected tokens of a record."""
        fields: dict[str, Any] = {}
        if self._every.codec not in NOT_STORED:
            parts = self._every.read(read)
            split_rows(parts, num_images)  # refuses rows of another number of images
            images = [{name: part[n] for name, part in parts.items()} for n in range(num_images)]
            fields["vision_embeddings"] = tuple(map(self._every.decode, images))
        if self._top.codec not in NOT_STORED:
            index = fields["vision_top_index"] = read("vision_top_index")[0]
            fields["vision_top_embeddings"] = (
                vision_rows(fields["vision_embeddings"], index)
                if self._top.codec == FROM_ALL
                else self._top.decode({name: part[0] for name, part in self._top.read(read).items()})
            )
        return fields


def _check_from_all(record: Record) -> None:
    """Refuse top embeddings that are not rows of all embeddings, which is what reading returns.

    Raises:
        StoreError: they differ, or one is encoded and the other not.
    """
    top, every, index = record.vision_top_embeddings, record.vision_embeddings, record.vision_top_index
    if top is None or every is None or index is None:
        return
    if not _same(top, vision_rows(every, index)):
        raise StoreError(
            "vision_top_embeddings are not the rows vision_top_index of vision_embeddings, the store's codec for them "
            "is from_all; give those rows, or nothing"
        )


def _same(a: Target, b: Target) -> bool:
    if isinstance(a, EncodedArray) and isinstance(b, EncodedArray):
        return a.same_as(b)
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and bool(np.array_equal(a, b))
