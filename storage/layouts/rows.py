"""Converts a record to rows of columns and back."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts, ReadRows, part_column
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.storage.errors import CorruptStoreError, StoreError, naming
from alignkd.storage.logits.pass_through import decoded, encoded
from alignkd.storage.logits.registry import check_kind
from alignkd.storage.record.images import joined_rows, pack_files, split_rows, unpack_files, vision_rows
from alignkd.storage.record.record import EncodedArray, Record, Target
from alignkd.storage.schema.columns import IMAGE_BYTES, KEYS, NO_ROW, columns_of, logits_codec_of
from alignkd.storage.schema.manifest import Manifest

Rows = dict[str, NDArray[Any]]

_INT_FIELDS = ("input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions")
_OPTIONAL = ("attention", "vision_top_index", "vision_top_embeddings", "vision_embeddings", "logits", "image_bytes")
_ABSENT: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), "image_bytes": ()}
_JSON = json.JSONDecoder()


class RecordCodec:
    """Encodes and decodes the records of one store."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.shapes, self.codecs = manifest, manifest.shapes, manifest.codecs
        self.columns = columns_of(manifest)
        self._logits = logits_codec_of(manifest)
        self._attention = _StoredTarget(self.codecs.attention, "attention")
        self._vision_all = _StoredTarget(self.codecs.vision_all, "vision_embeddings")
        self._vision_top = _StoredTarget(self.codecs.vision_top, "vision_top_embeddings")

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
            "id": _text_rows(record.id),
            "text": _text_rows(sample_text(record.conversations, record.images, record.image_sha256)),
        }
        rows |= {name: getattr(record, name) for name in _INT_FIELDS}
        if record.has_image:
            _expect("vision_positions", record.vision_positions, (record.num_images * self.shapes.vision_tokens,))
        self._encode_attention(record, rows)
        self._encode_vision_top(record, rows)
        self._encode_image(record, rows, with_image)
        self._encode_logits(record, rows)
        return rows

    def decode(self, read: ReadRows, table: dict[str, int]) -> Record:
        """The record whose rows `read(column)` gives; `table` is its row of RECORD_FIELDS."""
        text = _parsed(read("text").tobytes().decode("utf-8", "surrogatepass"))
        fields: dict[str, Any] = {
            "key": read(KEYS).tobytes().hex(),
            "id": read("id").tobytes().decode("utf-8", "surrogatepass"),
            "index": table["dataset_index"],
            "conversations": text["conversations"],
            **_ABSENT,
            "attention_pairs": self.codecs.attention_pairs,
        }
        for name in _INT_FIELDS:
            fields[name] = read(name)
        images, hashes = _listed(text["image"]), _listed(text["image_sha256"])
        num_images = len(images)
        self._check_num_images(text["image"], num_images, len(hashes), len(fields["vision_positions"]))
        fields |= {"images": images, "image_sha256": hashes}
        if table["attention_columns"] != NO_ROW:
            blocks = 1 if self.codecs.attention_pairs == "tqt" else num_images
            fields["attention"] = self._attention.decode(split_rows(self._attention.read(read), blocks))
        if images:
            self._decode_vision(fields, read)
            if self.manifest.inputs == "embed":
                content = read(IMAGE_BYTES).tobytes()
                fields["image_bytes"] = unpack_files(content, num_images) if num_images > 1 else (content,)
        if self._logits is not None:
            fields["logits"] = self._logits.decode(read)
        return Record.trusted(fields)

    def _check_num_images(self, stored: Any, count: int, hashes: int, vision_positions: int) -> None:
        """Refuse a list of images that does not fit the record: rows are cut by its length."""
        short_list = isinstance(stored, list) and count < 2
        if short_list or hashes != count or vision_positions != count * self.shapes.vision_tokens:
            raise CorruptStoreError(
                f"record with {count} images, {hashes} hashes and {vision_positions} vision_positions, each image has "
                f"{self.shapes.vision_tokens}; restore the shard from a copy, or dump it again"
            )

    def _encode_attention(self, record: Record, rows: Rows) -> None:
        pairs = self.codecs.attention_pairs
        # a text-only sample has no pair with an image; text-text pairs are kept if the caller has them
        optional = not record.has_image and pairs == "tqt"
        if not self._keeps("attention", self.codecs.attention, record, record.attention, optional):
            return
        attention = record.attention
        assert attention is not None
        Ht, P, k = self.shapes.num_heads, self.shapes.vision_tokens, record.num_images
        if pairs == "tqt":
            _expect("attention", attention, (1, attention.shape[1], Ht, attention.shape[-1]))
        else:
            R = len(record.tqv_query_positions if pairs == "tqv" else record.vision_positions)
            _expect("attention", attention, (k, R, Ht, P))
        _put("attention", joined_rows(encoded(self.codecs.attention, "attention", attention)), rows)

    def _encode_vision_top(self, record: Record, rows: Rows) -> None:
        codec, index = self.codecs.vision_top, record.vision_top_index
        if not self._keeps("vision_top_embeddings", codec, record, index):
            return
        assert index is not None
        K, Dt, top = self.shapes.vision_top_tokens, self.shapes.hidden_size, record.vision_top_embeddings
        _expect("vision_top_index", index, (K,))
        rows["vision_top_index"] = index[None]
        if codec == FROM_ALL:
            _check_from_all(record)
            return
        if top is None:
            raise StoreError(f"vision_top_embeddings is absent, the store's codec for it is {codec}; give it")
        _expect("vision_top_embeddings", top, (K, Dt))
        parts = encoded(codec, "vision_top_embeddings", top)
        _put("vision_top_embeddings", {name: part[None] for name, part in parts.items()}, rows)

    def _encode_image(self, record: Record, rows: Rows, with_image: bool) -> None:
        codec, every = self.codecs.vision_all, record.vision_embeddings
        if self._keeps("vision_embeddings", codec, record, every):
            assert every is not None
            _expect("vision_embeddings", every, (record.num_images, self.shapes.vision_tokens, self.shapes.hidden_size))
            if with_image:
                _put("vision_embeddings", encoded(codec, "vision_embeddings", every), rows)
        self._check_image_bytes(record)
        if with_image and record.image_bytes:
            files = record.image_bytes
            rows[IMAGE_BYTES] = np.frombuffer(pack_files(files) if len(files) > 1 else files[0], np.uint8)

    def _check_image_bytes(self, record: Record) -> None:
        inputs, present = self.manifest.inputs, bool(record.image_bytes)
        if present != (inputs == "embed" and record.has_image):
            raise StoreError(
                f"image_bytes is {'present' if present else 'absent'}, the store's inputs are {inputs} and the record "
                f"has {record.num_images} images; give the images' bytes exactly where inputs is embed"
            )

    def _encode_logits(self, record: Record, rows: Rows) -> None:
        check_kind(record.logits, self.codecs.logits, self._logits)
        if self._logits is not None:
            with naming("logits"):
                rows |= self._logits.encode(record.logits)

    def _decode_vision(self, fields: dict[str, Any], read: ReadRows) -> None:
        codecs = self.codecs
        if codecs.vision_all not in NOT_STORED:
            fields["vision_embeddings"] = self._vision_all.decode(self._vision_all.read(read))
        if codecs.vision_top not in NOT_STORED:
            index = fields["vision_top_index"] = read("vision_top_index")[0]
            fields["vision_top_embeddings"] = (
                vision_rows(fields["vision_embeddings"], index)
                if codecs.vision_top == FROM_ALL
                else self._vision_top.decode({name: part[0] for name, part in self._vision_top.read(read).items()})
            )

    def _keeps(self, field: str, codec: str, record: Record, values: object, optional: bool = False) -> bool:
        """Whether the record has the field; refuses a field that is missing or that the store does not keep."""
        present, required = values is not None, codec not in NOT_STORED and record.has_image
        if present == required or (optional and codec not in NOT_STORED):
            return present
        raise StoreError(
            f"{field} is {'present' if present else 'absent'}, the store's codec for it is {codec} and the record has "
            f"{record.num_images} images; give exactly the targets that the manifest names"
        )


def _put(field: str, parts: Parts, rows: Rows) -> None:
    """Add the rows of a field's parts."""
    for part, stored in parts.items():
        rows[part_column(field, part)] = stored


class _StoredTarget:
    """Reads a float target; made once, because names and codecs are the same for every record."""

    def __init__(self, codec: str, field: str) -> None:
        self._codec = codec
        stored = codec not in (FROM_ALL, *NOT_STORED)
        self._columns = [(part, part_column(field, part)) for part in get_codec(codec).part_names] if stored else []

    def read(self, read: ReadRows) -> Parts:
        """The rows of each part."""
        return {part: read(column) for part, column in self._columns}

    def decode(self, parts: Parts) -> Target:
        """The target with these parts."""
        return decoded(self._codec, parts)


def _check_from_all(record: Record) -> None:
    """Refuse top embeddings that are not rows of all embeddings, which is what reading returns.

    Raises:
        StoreError: they differ, or one is encoded and the other not.
    """
    top, every, index = record.vision_top_embeddings, record.vision_embeddings, record.vision_top_index
    if top is None or every is None or index is None:
        return
    rows = vision_rows(every, index)
    if isinstance(top, EncodedArray) and isinstance(rows, EncodedArray):
        same = top.same_as(rows)
    else:
        same = isinstance(top, np.ndarray) and isinstance(rows, np.ndarray) and np.array_equal(top, rows)
    if not same:
        raise StoreError(
            "vision_top_embeddings are not the rows vision_top_index of vision_embeddings, the store's codec for them "
            "is from_all; give those rows, or nothing"
        )


def sample_text(conversations: Sequence[dict[str, str]], images: Sequence[str], image_sha256: Sequence[str]) -> str:
    """The JSON text of a sample as it is stored: no image is null, one image a text, several are a list."""
    fields = {"conversations": conversations, "image": _spelled(images), "image_sha256": _spelled(image_sha256)}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _spelled(items: Sequence[str]) -> Sequence[str] | None:
    return items if len(items) > 1 else items[0] if items else None


def _listed(stored: Any) -> tuple[str, ...]:
    """The inverse of `_spelled`."""
    return () if stored is None else tuple(stored) if isinstance(stored, list) else (stored,)


def _parsed(text: str) -> Any:
    """The same as `json.loads`, but faster for text without white space around it."""
    document, end = _JSON.raw_decode(text)
    return document if end == len(text) else json.loads(text)


def _text_rows(text: str) -> NDArray[np.uint8]:
    # some data sets contain lone surrogates; the store keeps them
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _expect(field: str, values: NDArray[Any] | EncodedArray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise StoreError(f"{field} has shape {values.shape}, the store expects {shape}")
