"""Converts a record to rows of columns and back."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import ReadRows, part_column
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
_ABSENT = dict.fromkeys(_OPTIONAL)
_JSON = json.JSONDecoder()


class RecordCodec:
    """Encodes and decodes the records of one store."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.shapes, self.codecs = manifest, manifest.shapes, manifest.codecs
        self.columns = columns_of(manifest)
        self._logits = logits_codec_of(manifest)
        self._stored = {
            "attention": _StoredTarget(self.codecs.attention, "attention", one_row=False),
            "vision_embeddings": _StoredTarget(self.codecs.vision_all, "vision_embeddings", one_row=True),
            "vision_top_embeddings": _StoredTarget(self.codecs.vision_top, "vision_top_embeddings", one_row=True),
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
            "id": _text_rows(record.id),
            "text": _text_rows(_sample_text(record)),
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
            **text,
            **_ABSENT,
        }
        for name in _INT_FIELDS:
            fields[name] = read(name)
        num_images = 1
        if isinstance(text["image"], list):
            num_images = self._num_images(text, len(fields["vision_positions"]))
            fields |= {name: tuple(text[name]) for name in ("image", "image_sha256")}
        if table["attention_columns"] != NO_ROW:
            blocks = 1 if self.codecs.attention_pairs == "tqt" else num_images
            fields["attention"] = self._stored["attention"].decode(read, blocks)
        if text["image"] is not None:
            self._decode_vision(fields, read, num_images)
            if self.manifest.inputs == "embed":
                content = read(IMAGE_BYTES).tobytes()
                fields["image_bytes"] = content if num_images == 1 else unpack_files(content, num_images)
        if self._logits is not None:
            fields["logits"] = self._logits.decode(read)
        return Record.trusted(fields)

    def _num_images(self, text: dict[str, Any], vision_positions: int) -> int:
        """How many images a record with a list of them has; rows are cut by it."""
        count = len(text["image"])
        hashes = len(text["image_sha256"])
        if count < 2 or hashes != count or vision_positions != count * self.shapes.vision_tokens:
            raise CorruptStoreError(
                f"record with {count} images, {hashes} hashes and {vision_positions} vision_positions, each image has "
                f"{self.shapes.vision_tokens}; restore the shard from a copy, or dump it again"
            )
        return count

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
            _expect("attention", attention, (attention.shape[0], Ht, attention.shape[-1]))
        else:
            R = len(record.tqv_query_positions if pairs == "tqv" else record.vision_positions)
            _expect("attention", attention, (R, Ht, P) if k == 1 else (k, R, Ht, P))
        _put(self.codecs.attention, "attention", attention, rows, several=len(attention.shape) == 4)

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
        _put(codec, "vision_top_embeddings", top, rows, one_row=True)

    def _encode_image(self, record: Record, rows: Rows, with_image: bool) -> None:
        codec, every = self.codecs.vision_all, record.vision_embeddings
        if self._keeps("vision_embeddings", codec, record, every):
            assert every is not None
            shape, k = (self.shapes.vision_tokens, self.shapes.hidden_size), record.num_images
            _expect("vision_embeddings", every, shape if k == 1 else (k, *shape))
            if with_image:
                _put(codec, "vision_embeddings", every, rows, one_row=k == 1)
        self._check_image_bytes(record)
        if with_image and record.image_bytes is not None:
            files = record.image_files
            rows[IMAGE_BYTES] = np.frombuffer(files[0] if len(files) == 1 else pack_files(files), np.uint8)

    def _check_image_bytes(self, record: Record) -> None:
        inputs, present = self.manifest.inputs, record.image_bytes is not None
        if present != (inputs == "embed" and record.has_image):
            raise StoreError(
                f"image_bytes is {'present' if present else 'absent'}, the store's inputs are {inputs} and image is "
                f"{record.image!r}; give the image's bytes exactly where inputs is embed"
            )

    def _encode_logits(self, record: Record, rows: Rows) -> None:
        check_kind(record.logits, self.codecs.logits, self._logits)
        if self._logits is not None:
            with naming("logits"):
                rows |= self._logits.encode(record.logits)

    def _decode_vision(self, fields: dict[str, Any], read: ReadRows, num_images: int) -> None:
        codecs = self.codecs
        if codecs.vision_all not in NOT_STORED:
            fields["vision_embeddings"] = self._stored["vision_embeddings"].decode(read, num_images)
        if codecs.vision_top not in NOT_STORED:
            index = fields["vision_top_index"] = read("vision_top_index")[0]
            fields["vision_top_embeddings"] = (
                vision_rows(fields["vision_embeddings"], index)
                if codecs.vision_top == FROM_ALL
                else self._stored["vision_top_embeddings"].decode(read)
            )

    def _keeps(self, field: str, codec: str, record: Record, values: object, optional: bool = False) -> bool:
        """Whether the record has the field; refuses a field that is missing or that the store does not keep."""
        present, required = values is not None, codec not in NOT_STORED and record.has_image
        if present == required or (optional and codec not in NOT_STORED):
            return present
        raise StoreError(
            f"{field} is {'present' if present else 'absent'}, the store's codec for it is {codec} and image is "
            f"{record.image!r}; give exactly the targets that the manifest names"
        )


def _put(codec: str, field: str, values: Target, rows: Rows, *, one_row: bool = False, several: bool = False) -> None:
    """Add a field's stored parts; `one_row`: all of it is one row of its columns; `several`: blocks of rows."""
    parts = encoded(codec, field, values)
    for part, stored in (joined_rows(parts) if several else parts).items():
        rows[part_column(field, part)] = stored[None] if one_row else stored


class _StoredTarget:
    """Reads a float target; made once, because names and codecs are the same for every record."""

    def __init__(self, codec: str, field: str, *, one_row: bool) -> None:
        """`one_row`: the whole target is one row of its columns."""
        self._codec, self._one_row = codec, one_row
        stored = codec not in (FROM_ALL, *NOT_STORED)
        self._columns = [(part, part_column(field, part)) for part in get_codec(codec).part_names] if stored else []

    def decode(self, read: ReadRows, num_images: int = 1) -> Target:
        """The target; of several images with a leading axis."""
        parts, one_row = {}, self._one_row and num_images == 1
        for part, column in self._columns:
            parts[part] = read(column)[0] if one_row else read(column)
        return decoded(self._codec, parts if self._one_row or num_images == 1 else split_rows(parts, num_images))


def _check_from_all(record: Record) -> None:
    """Refuse focused embeddings that are not rows of all of them, as reading will give.

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


def _sample_text(record: Record) -> str:
    fields = {name: getattr(record, name) for name in ("conversations", "image", "image_sha256")}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


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
