"""From a record to rows of columns and back: the one place that knows both sides."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs import get_codec
from storage.codecs.base import part_column
from storage.columns import KEYS, columns_of, truncated_codec
from storage.errors import StoreError, naming
from storage.manifest import Manifest
from storage.record import Record, TruncatedLogits

Rows = dict[str, NDArray[Any]]
# column -> the record's rows of it
ReadRows = Callable[[str], NDArray[Any]]

NO_ROW = -1
_INT_FIELDS = ("input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions")
_TARGETS = ("attention", "vision_top_index", "vision_top_embeddings", "vision_embeddings", "logits")


class RecordCodec:
    """Encodes and decodes the records of one store."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest, self.shapes, self.codecs = manifest, manifest.shapes, manifest.codecs
        self.columns = columns_of(manifest)
        self.by_name = {column.name: column for column in self.columns}
        self._truncated = truncated_codec(manifest)

    def encode(self, record: Record, *, with_image: bool) -> Rows:
        """Rows of every column but the shard's tables; `with_image` adds the all-token embeddings.

        Raises:
            StoreError: the record has not the targets or shapes that the manifest promises.
            RecordError: a codec cannot hold its values.
        """
        rows: Rows = {
            KEYS: np.frombuffer(bytes.fromhex(record.key), np.uint8).reshape(1, 32),
            "id": _text_rows(record.id),
            "text": _text_rows(_sample_text(record)),
        }
        rows |= {name: getattr(record, name) for name in _INT_FIELDS}
        if record.has_image:
            _expect("vision_positions", record.vision_positions, (self.shapes.vision_tokens,))
        self._encode_attention(record, rows)
        self._encode_vision(record, rows, with_image)
        self._encode_logits(record, rows)
        return rows

    def decode(self, read: ReadRows, table: dict[str, int]) -> Record:
        """The record whose rows `read(column)` gives; `table` is its row of RECORD_FIELDS."""
        text = json.loads(read("text").tobytes())
        fields: dict[str, Any] = {
            "key": read(KEYS).tobytes().hex(),
            "id": read("id").tobytes().decode("utf-8", "surrogatepass"),
            "index": table["dataset_index"],
            **text,
            **{name: read(name) for name in _INT_FIELDS},
            **dict.fromkeys(_TARGETS),
        }
        if table["attention_columns"] != NO_ROW:
            fields["attention"] = self._floats(self.codecs.attention, "attention", read)
        if text["image"] is not None:
            self._decode_vision(fields, read)
        fields["logits"] = self._decode_logits(read)
        return Record.trusted(fields)

    def _encode_attention(self, record: Record, rows: Rows) -> None:
        pairs = self.codecs.attention_pairs
        # a text-only sample has no pair with an image; text-text pairs are kept if the caller has them
        optional = not record.has_image and pairs == "tqt"
        if not self._keeps("attention", self.codecs.attention, record, record.attention, optional):
            return
        attention = record.attention
        assert attention is not None
        Q, P, Ht = len(record.tqv_query_positions), len(record.vision_positions), self.shapes.num_heads
        shape = {"tqv": (Q, Ht, P), "vqv": (P, Ht, P), "tqt": (len(attention), Ht, attention.shape[2])}
        _expect("attention", attention, shape[pairs])
        self._put_floats(self.codecs.attention, "attention", attention, rows)

    def _encode_vision(self, record: Record, rows: Rows, with_image: bool) -> None:
        K, Dt, P = self.shapes.vision_top_tokens, self.shapes.hidden_size, self.shapes.vision_tokens
        codec, top = self.codecs.vision_top, record.vision_top_embeddings
        if self._keeps("vision_top_embeddings", codec, record, top):
            assert top is not None and record.vision_top_index is not None
            _expect("vision_top_embeddings", top, (K, Dt))
            self._put_floats(codec, "vision_top_embeddings", top[None], rows)
            rows["vision_top_index"] = record.vision_top_index[None]
        codec, every = self.codecs.vision_all, record.vision_embeddings
        if self._keeps("vision_embeddings", codec, record, every):
            assert every is not None
            _expect("vision_embeddings", every, (P, Dt))
            if with_image:
                self._put_floats(codec, "vision_embeddings", every[None], rows)

    def _encode_logits(self, record: Record, rows: Rows) -> None:
        kind, logits = self.codecs.logits.kind, record.logits
        found = "topk" if isinstance(logits, TruncatedLogits) else "none" if logits is None else "full"
        if found != kind:
            raise StoreError(f"logits: the record has {found}, the store keeps {kind}; make them agree")
        if self._truncated is not None and isinstance(logits, TruncatedLogits):
            with naming("logits"):
                rows |= self._truncated.encode(logits)
        elif isinstance(logits, np.ndarray):
            _expect("logits", logits, (len(record.supervised_positions), self.shapes.vocab_size))
            self._put_floats(self.codecs.logits.dtype, "logits", logits, rows)

    def _decode_vision(self, fields: dict[str, Any], read: ReadRows) -> None:
        if self.codecs.vision_top != "none":
            embeddings = self._floats(self.codecs.vision_top, "vision_top_embeddings", read)
            fields["vision_top_embeddings"] = embeddings[0]
            fields["vision_top_index"] = read("vision_top_index")[0]
        if self.codecs.vision_all != "none":
            embeddings = self._floats(self.codecs.vision_all, "vision_embeddings", read)
            fields["vision_embeddings"] = embeddings[0]

    def _decode_logits(self, read: ReadRows) -> TruncatedLogits | NDArray[Any] | None:
        logits = self.codecs.logits
        if logits.kind == "none":
            return None
        if self._truncated is None:
            return self._floats(logits.dtype, "logits", read)
        arrays = {
            "entry_counts": read("entry_counts"),
            "tail_logmass": read("tail_logmass"),
            "entry_ids": read("entry_ids"),
            "entry_logprobs": read("entry_logprobs"),
        }
        return TruncatedLogits.trusted(self._truncated.decode(arrays))

    def _keeps(self, field: str, codec: str, record: Record, values: object, optional: bool = False) -> bool:
        """Whether the record brings the field; refuses one that is missing or that nobody keeps."""
        present, required = values is not None, codec != "none" and record.has_image
        if present == required or (optional and codec != "none"):
            return present
        raise StoreError(
            f"{field} is {'present' if present else 'absent'}, the store's codec for it is {codec} and image is "
            f"{record.image!r}; give exactly the targets that the manifest names"
        )

    def _put_floats(self, codec: str, field: str, values: NDArray[Any], rows: Rows) -> None:
        with naming(field):
            for part, stored in get_codec(codec).encode(values).items():
                rows[part_column(field, part)] = stored

    def _floats(self, codec: str, field: str, read: ReadRows) -> NDArray[Any]:
        chosen = get_codec(codec)
        return chosen.decode({part: read(part_column(field, part)) for part in chosen.part_names})


def _sample_text(record: Record) -> str:
    fields = {name: getattr(record, name) for name in ("conversations", "image", "image_sha256")}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _text_rows(text: str) -> NDArray[np.uint8]:
    # data sets hold lone surrogates now and then; the store keeps what it was given
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def _expect(field: str, values: NDArray[Any], shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise StoreError(f"{field} has shape {values.shape}, the store expects {shape}")
