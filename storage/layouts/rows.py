"""Converts a record to rows of columns and back."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.storage.errors import CorruptStoreError, StoreError, naming
from alignkd.storage.layouts.further_targets import FurtherTargets
from alignkd.storage.layouts.stored_target import Rows, StoredTarget, expect, text_of, text_rows
from alignkd.storage.layouts.vision_rows import VisionRows
from alignkd.storage.logits.pass_through import encoded
from alignkd.storage.logits.registry import check_kind
from alignkd.storage.record.images import joined_rows, pack_files, split_rows, unpack_files
from alignkd.storage.record.part import RecordPart, supervised_labels
from alignkd.storage.record.record import Record, Target
from alignkd.storage.schema.columns.shard import (
    ATTENTION_COLUMNS,
    IMAGE_BYTES,
    IMAGE_TOKENS,
    KEYS,
    NO_ROW,
    columns_of,
    logits_codec_of,
)
from alignkd.storage.schema.manifest import Manifest

__all__ = ["RecordCodec", "Rows", "sample_text"]

_INT_FIELDS = ("input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions")
_OPTIONAL = ("attention", "vision_top_index", "vision_top_embeddings", "vision_embeddings", "logits")
_JSON = json.JSONDecoder()
NO_SAMPLE = "the text of a record is not a sample; restore the shard from a copy, or dump it again"


class RecordCodec:
    """Encodes the records of one store, and decodes those of a store of any schema that is read."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.shapes, self.codecs = manifest, manifest.shapes, manifest.codecs
        self.columns = columns_of(manifest)
        self._logits = logits_codec_of(manifest)
        self._attention = StoredTarget(self.codecs.attention, "attention")
        self._vision = VisionRows(manifest)
        self._more = FurtherTargets(manifest)
        # attention to vision tokens is a block of columns for each image
        self._blocks_of_images = self.codecs.attention_pairs != "tqt" and self.shapes.vision_tokens is not None
        self._absent: dict[str, Any] = {
            **dict.fromkeys(_OPTIONAL),
            "image_bytes": (),
            "attention_pairs": self.codecs.attention_pairs,
        }

    def encode(self, record: Record, *, with_image: bool) -> Rows:
        """Rows of every column except the shard's tables; `with_image` adds the rows that are stored once per image.

        Fields that are an EncodedArray of the store's codec keep their bytes.

        Raises:
            StoreError: the record does not have the targets or shapes of the manifest, or a field is encoded by another
                codec.
            RecordError: a codec cannot hold the values of a field.
        """
        rows: Rows = {
            KEYS: np.frombuffer(bytes.fromhex(record.key), np.uint8).reshape(1, 32),
            "id": text_rows(record.id),
            "text": text_rows(sample_text(record.conversations, record.images, record.image_sha256)),
            IMAGE_TOKENS: np.array(record.tokens_of_image, np.int32),
        }
        rows |= {name: getattr(record, name) for name in _INT_FIELDS}
        tokens = self.shapes.vision_tokens
        if tokens is not None and record.has_image:
            expect("vision_positions", record.vision_positions, (record.num_images * tokens,))
        self._encode_attention(record, rows)
        if self._keeps("vision_top_embeddings", self.codecs.vision_top, record, record.vision_top_index):
            self._vision.encode_top(record, rows)
        if self._keeps("vision_embeddings", self.codecs.vision_all, record, record.vision_embeddings):
            self._vision.encode_every(record, rows, store=with_image)
        self._encode_image_files(record, rows, with_image)
        self._encode_logits(record, rows)
        self._more.encode(record, rows, with_image=with_image)
        return rows

    def numbers(self, record: Record) -> dict[str, int]:
        """The record's fields of `records`, apart from those that say where its images are stored."""
        return {
            "dataset_index": record.index,
            ATTENTION_COLUMNS: NO_ROW if record.attention is None else record.attention.shape[-1],
            "num_images": record.num_images,
            "length": record.sequence_length,
            **self._more.widths(record),
        }

    def decode(self, read: ReadRows, table: dict[str, int]) -> Record:
        """The record whose rows `read(column)` gives; `table` is its row of RECORD_FIELDS."""
        text = _sample(text_of(read("text")))
        fields: dict[str, Any] = {
            "key": read(KEYS).tobytes().hex(),
            "id": text_of(read("id")),
            "index": table["dataset_index"],
            "conversations": text["conversations"],
            **self._absent,
        }
        for name in _INT_FIELDS:
            fields[name] = read(name)
        images, hashes = _listed(text["image"]), _listed(text["image_sha256"])
        fields |= {"images": images, "image_sha256": hashes}
        tokens = fields["tokens_of_image"] = self._tokens_of_image(read, len(images))
        self._check_num_images(text["image"], fields, table)
        if (attention := self._decode_attention(read, len(images), table)) is not None:
            fields["attention"] = attention
        if images:
            fields |= self._vision.decode(read, tokens)
            if self.manifest.inputs == "embed":
                content = read(IMAGE_BYTES).tobytes()
                fields["image_bytes"] = unpack_files(content, len(images)) if len(images) > 1 else (content,)
        if self._logits is not None:
            fields["logits"] = self._logits.decode(read)
        fields["more"] = self._more.decode(read, bool(images))
        return Record.trusted(fields)

    def decode_conversation(self, read: ReadRows) -> list[dict[str, Any]]:
        """The turns of a record; no other column is requested from `read`."""
        found: list[dict[str, Any]] = _sample(text_of(read("text")))["conversations"]
        return found

    def decode_part(
        self, read: ReadRows, table: dict[str, int], *, logits: bool, attention: bool, more: Collection[str]
    ) -> RecordPart:
        """The labels and some targets of a record; no other column is requested from `read`.

        Args:
            logits, attention: whether the store's own logits and attention are decoded.
            more: names of further targets.
        """
        return RecordPart(
            labels=supervised_labels(read("labels")),
            logits=self._logits.decode(read) if logits and self._logits is not None else None,
            attention=self._decode_attention(read, self._num_images(read, table), table) if attention else None,
            more=self._more.decode(read, table["image_row"] != NO_ROW, more),
        )

    def _decode_attention(self, read: ReadRows, num_images: int, table: dict[str, int]) -> Target | None:
        if table[ATTENTION_COLUMNS] == NO_ROW:
            return None
        blocks = num_images if self._blocks_of_images else 1
        return self._attention.decode(split_rows(self._attention.read(read), blocks))

    def _num_images(self, read: ReadRows, table: dict[str, int]) -> int:
        if "num_images" in table:
            return table["num_images"]
        return len(read("vision_positions")) // (self.shapes.vision_tokens or 1)

    def _tokens_of_image(self, read: ReadRows, num_images: int) -> tuple[int, ...]:
        if self.manifest.schema_version == 2:
            return (self.shapes.vision_tokens or 0,) * num_images
        return tuple(read(IMAGE_TOKENS).tolist()) if num_images else ()

    def _check_num_images(self, stored: Any, fields: dict[str, Any], table: dict[str, int]) -> None:
        """Refuse a list of images that does not fit the record: rows are cut by its length."""
        count, hashes, tokens = len(fields["images"]), len(fields["image_sha256"]), fields["tokens_of_image"]
        vision_positions = len(fields["vision_positions"])
        short_list = isinstance(stored, list) and count < 2
        fits = hashes == count == len(tokens) == table.get("num_images", count) and sum(tokens) == vision_positions
        if short_list or not fits:
            each = (
                f"each image has {self.shapes.vision_tokens}" if self.shapes.vision_tokens else f"images have {tokens}"
            )
            raise CorruptStoreError(
                f"record with {count} images, {hashes} hashes and {vision_positions} vision_positions, {each}; restore "
                "the shard from a copy, or dump it again"
            )

    def _encode_attention(self, record: Record, rows: Rows) -> None:
        pairs = self.codecs.attention_pairs
        # a text-only sample has no pair with an image; text-text pairs are kept if the caller has them
        optional = not record.has_image and pairs == "tqt"
        if not self._keeps("attention", self.codecs.attention, record, record.attention, optional):
            return
        attention = record.attention
        assert attention is not None
        Ht, P, k = self.shapes.num_heads, len(record.vision_positions), record.num_images
        if pairs == "tqt":
            expect("attention", attention, (1, attention.shape[1], Ht, attention.shape[-1]))
        else:
            R = len(record.tqv_query_positions) if pairs == "tqv" else P
            blocks = k if self._blocks_of_images else 1
            expect("attention", attention, (blocks, R, Ht, P // blocks))
        self._attention.put(joined_rows(encoded(self.codecs.attention, "attention", attention)), rows)

    def _encode_image_files(self, record: Record, rows: Rows, with_image: bool) -> None:
        inputs, files = self.manifest.inputs, record.image_bytes
        if bool(files) != (inputs == "embed" and record.has_image):
            raise StoreError(
                f"image_bytes is {'present' if files else 'absent'}, the store's inputs are {inputs} and the record "
                f"has {record.num_images} images; give the images' bytes exactly where inputs is embed"
            )
        if with_image and files:
            rows[IMAGE_BYTES] = np.frombuffer(pack_files(files) if len(files) > 1 else files[0], np.uint8)

    def _encode_logits(self, record: Record, rows: Rows) -> None:
        check_kind(record.logits, self.codecs.logits, self._logits)
        if self._logits is not None:
            with naming("logits"):
                rows |= self._logits.encode(record.logits)

    def _keeps(self, field: str, codec: str, record: Record, values: object, optional: bool = False) -> bool:
        """Whether the record has the field; refuses a field that is missing or that the store does not keep."""
        present, required = values is not None, codec not in NOT_STORED and record.has_image
        if present == required or (optional and codec not in NOT_STORED):
            return present
        raise StoreError(
            f"{field} is {'present' if present else 'absent'}, the store's codec for it is {codec} and the record has "
            f"{record.num_images} images; give exactly the targets that the manifest names"
        )


def sample_text(conversations: Sequence[Mapping[str, Any]], images: Sequence[str], image_sha256: Sequence[str]) -> str:
    """The JSON text of a sample as it is stored: no image is null, one image a text, several are a list."""
    fields = {"conversations": conversations, "image": _spelled(images), "image_sha256": _spelled(image_sha256)}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _spelled(items: Sequence[str]) -> Sequence[str] | None:
    return items if len(items) > 1 else items[0] if items else None


def _listed(stored: Any) -> tuple[str, ...]:
    """The inverse of `_spelled`."""
    return () if stored is None else tuple(stored) if isinstance(stored, list) else (stored,)


def _sample(text: str) -> dict[str, Any]:
    """The sample in a stored text; a checksum does not say who wrote it.

    Raises:
        CorruptStoreError: it is not what `sample_text` writes.
    """
    try:
        document: dict[str, Any] = _parsed(text)
        turns, named = document["conversations"], [document["image"], document["image_sha256"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CorruptStoreError(NO_SAMPLE) from None
    texts = (entry for names in named for entry in _listed(names))
    if not isinstance(turns, list) or not all(type(turn) is dict for turn in turns):
        raise CorruptStoreError(NO_SAMPLE)
    if not all(type(entry) is str for entry in texts):
        raise CorruptStoreError(NO_SAMPLE)
    return document


def _parsed(text: str) -> Any:
    """The same as `json.loads`, but faster for text without white space around it."""
    document, end = _JSON.raw_decode(text)
    return document if end == len(text) else json.loads(text)
