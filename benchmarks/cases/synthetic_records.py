"""Records in the shapes of MobileVLM V2's 7B teacher, filled with noise: nothing is compressed, so only sizes
matter."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, TruncatedLogits
from alignkd.storage.record.encoded import EncodedArray

HEADS, HIDDEN, TOKENS, TOP, VOCABULARY, TOP_K = 32, 4096, 144, 16, 32000, 64
ATTENTION = {"u8": "sqrt_u8", "f16": "float16"}
POOL_ROWS = 1024


class Records:
    """`records[index]` is always the same record, with 90 to 170 text queries and 20 to 60 supervised positions.

    Args:
        attention: `u8` (square-root scale) or `f16`.
        vision_all: also keep the embeddings of all vision tokens, bfloat16; every record has another image.
    """

    def __init__(self, attention: str, *, vision_all: bool) -> None:
        self.codec, self.vision_all = ATTENTION[attention], vision_all
        rng = np.random.default_rng(0)
        values = rng.random((POOL_ROWS, HEADS, TOKENS), np.float32) / TOKENS
        self._attention: Any = EncodedArray.encode(self.codec, values) if attention == "u8" else values.astype("f2")
        self._vision = EncodedArray.encode("bfloat16", rng.standard_normal((4 * TOKENS, HIDDEN), np.float32))
        weights = rng.gamma(0.3, size=(POOL_ROWS, TOP_K + 1)) + 1e-4
        self._logprobs = np.log(weights / weights.sum(1, keepdims=True)).astype("f4")
        self._made: dict[int, Record] = {}

    def manifest(self, *, num_samples: int, shard_size: int, backend: Any) -> Manifest:
        """The manifest of a store with `num_samples` such records."""
        return Manifest(
            fingerprint={"weights": "noise"},
            data_fingerprint={"name": "noise"},
            shapes=Shapes(num_heads=HEADS, hidden_size=HIDDEN, vision_tokens=TOKENS, vocab_size=VOCABULARY),
            codecs=Codecs(
                attention=self.codec,
                vision_top="bfloat16",
                vision_all="bfloat16" if self.vision_all else "none",
                logits=LogitsCodec(kind="topk", top_k=TOP_K, dtype="float16"),
            ),
            backend=backend,
            num_samples=num_samples,
            shard_size=shard_size,
            seed=0,
        )

    def __getitem__(self, index: int) -> Record:
        if index not in self._made:  # made once: making records is not measured, and the large arrays are shared
            self._made[index] = self._make(index)
        return self._made[index]

    def _make(self, index: int) -> Record:
        rng = np.random.default_rng(index)
        queries, supervised = int(rng.integers(90, 170)), int(rng.integers(20, 61))
        T, start = 40 + queries, int(rng.integers(0, POOL_ROWS - 170))
        input_ids = rng.integers(3, VOCABULARY, T).astype("i4")
        input_ids[35] = -200
        labels = np.full(T, -100, np.int32)
        labels[-supervised:] = input_ids[-supervised:]
        length = T - 1 + TOKENS
        top = np.sort(rng.permutation(TOKENS)[:TOP])
        image = rng.integers(0, 3 * TOKENS)
        return Record(
            key=f"{index:064x}",
            id=str(index),
            index=index,
            conversations=[
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "Noise. " * 20},
            ],
            images=(f"{index}.jpg",),
            image_sha256=(f"{index:064x}",),
            input_ids=input_ids,
            labels=labels,
            vision_positions=np.arange(35, 35 + TOKENS, dtype=np.int32),
            tqv_query_positions=np.arange(length - queries, length, dtype=np.int32),
            supervised_positions=np.arange(length - supervised - 1, length - 1, dtype=np.int32),
            attention=self._attention[None, start : start + queries],
            vision_top_index=top.astype(np.uint16),
            vision_top_embeddings=self._vision[image + top],
            vision_embeddings=(self._vision[image : image + TOKENS],) if self.vision_all else None,
            logits=self._logits(rng, start, supervised),
        )

    def _logits(self, rng: np.random.Generator, start: int, positions: int) -> TruncatedLogits:
        logprobs = self._logprobs[start : start + positions]
        ids = np.argsort(rng.random((positions, 4 * TOP_K)), axis=1)[:, :TOP_K]
        return TruncatedLogits(
            ids=ids.astype(np.uint16).ravel(),
            logprobs=logprobs[:, :TOP_K].astype(np.float16).ravel(),
            offsets=np.arange(positions + 1, dtype=np.int64) * TOP_K,
            tail_logmass=logprobs[:, TOP_K].copy(),
        )


def arrays_of(value: Any, name: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and array of every array of a record; all layouts are compared by these bytes."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from arrays_of(part, f"{name}.{key}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from arrays_of(getattr(value, field.name), f"{name}.{field.name}")


def num_bytes(record: Record) -> int:
    """Bytes of a record's arrays."""
    return sum(array.nbytes for _, array in arrays_of(record))


class RawFile:
    """The arrays of records, one after the other in a file without any structure, and their offsets.

    Attributes:
        starts: offset of each record, int64 [records + 1].
        places: for each record, name, dtype, shape and offset of each array.
    """

    def __init__(self, path: Path, records: Records, order: NDArray[np.int64]) -> None:
        self.path, self.places = path, []
        end, starts = 0, [0]
        with path.open("wb") as file:
            for index in order.tolist():
                here = []
                for name, array in arrays_of(records[index]):
                    here.append((name, array.dtype, array.shape, end))
                    end += file.write(np.ascontiguousarray(array).data)
                self.places.append(here)
                starts.append(end)
        self.starts = np.array(starts)
        self.map = self.opened()

    def __len__(self) -> int:
        return len(self.places)

    def opened(self) -> NDArray[np.uint8]:
        """A new map of the file, without any page mapped."""
        return np.memmap(self.path, np.uint8, mode="r")

    def copy(self, position: int) -> NDArray[np.uint8]:
        """Copy the bytes of one record into new memory, the reference for all readers."""
        return np.array(self.map[self.starts[position] : self.starts[position + 1]])

    def arrays(self, position: int) -> dict[str, NDArray[Any]]:
        """The arrays of one record, copied once."""
        block, first = self.copy(position), int(self.starts[position])
        return {
            name: np.ndarray(shape, dtype, block, offset - first)
            for name, dtype, shape, offset in self.places[position]
        }
