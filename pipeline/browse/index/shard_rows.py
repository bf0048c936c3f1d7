"""The first pass over a shard: what follows from its tables, ids and texts, without reading a target."""

import hashlib
import json
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.browse.index.words import search_text
from alignkd.storage.layouts.stored_target import text_of
from alignkd.storage.read.lengths import LENGTHS, lengths_of
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.schema.manifest import Manifest

# stored for each record of a shard, besides its id and its key; `answer` identifies the answers, 0 without one
CHEAP: dict[str, np.dtype[Any]] = {
    "index": np.dtype("<i8"),
    "tokens": np.dtype("<i4"),
    "vision": np.dtype("<i4"),
    "images": np.dtype("<i4"),
    "supervised": np.dtype("<i4"),
    "answer": np.dtype("<i8"),
    "repetition": np.dtype("<f8"),
}
_LENGTHS = {"tokens": "token", "vision": "vision", "images": "num_images", "supervised": "supervised"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardRows:
    """The records of a shard.

    Attributes:
        values: the columns `CHEAP`, each [n].
        keys: uint8 [n, 32].
        ids: of each record, UTF-8.
        texts: the conversation of each record in the form that is searched.
    """

    values: dict[str, NDArray[Any]]
    keys: NDArray[np.uint8]
    ids: list[bytes]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def read_rows(shard: OpenShard, manifest: Manifest) -> ShardRows:
    """Read tables, ids, keys and texts of a shard.

    Raises:
        CorruptStoreError: one of them is damaged.
    """
    lengths = dict(zip(LENGTHS, lengths_of(shard.tables, manifest), strict=True))
    said = [turns_of(text) for text in shard.texts()]
    answers = ["\n".join(value for role, value in turns if role == "gpt") for turns in said]
    values: dict[str, NDArray[Any]] = {name: lengths[length] for name, length in _LENGTHS.items()}
    values["index"] = shard.tables.field("dataset_index")
    values["answer"] = np.array([answer_number(answer) for answer in answers], np.int64)
    values["repetition"] = np.array([repetition(answer) for answer in answers], np.float64)
    return ShardRows(
        values={name: values[name].astype(dtype) for name, dtype in CHEAP.items()},
        keys=shard.keys(),
        ids=_ids(shard),
        texts=[search_text("\n".join(value for _, value in turns)) for turns in said],
    )


def turns_of(text: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of a stored sample; a turn of another form is left out."""
    try:
        turns = json.loads(text)["conversations"]
        found = [(turn["from"], turn["value"]) for turn in turns]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [(role, value) for role, value in found if isinstance(role, str) and isinstance(value, str)]


def answer_number(answer: str) -> int:
    """A number that is the same for equal answers; 0 without an answer."""
    if not answer:
        return 0
    return int.from_bytes(hashlib.blake2b(_utf8(answer), digest_size=8).digest(), "little", signed=True) or 1


def repetition(answer: str) -> float:
    """Bytes of a text per byte of its zlib compression; NaN for an empty one."""
    data = _utf8(answer)
    return len(data) / len(zlib.compress(data, 1)) if data else float("nan")


def _ids(shard: OpenShard) -> list[bytes]:
    data, ends = shard.ids(), shard.tables.ends("id").tolist()
    # a text that is no UTF-8 is refused here, as by `StoreReader`
    return [_utf8(text_of(data[start:stop])) for start, stop in pairwise(ends)]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
