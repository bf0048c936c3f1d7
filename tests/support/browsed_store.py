"""Made stores with pictures and a tokenizer, for the pages of `alignkd shards browse`, without teacher and torch.

Each record is a pure function of its index and the seed. Every seventh has no image, every eleventh is unusable.
"""

import hashlib
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignkd.storage import Codecs, LogitsCodec, Manifest, Record, Shapes, TruncatedLogits, open_writer
from alignkd.storage.schema.sources import StoredSource

HEADS, ROWS, COLUMNS, VOCABULARY, TOP, WIDTH, HEIGHT = 3, 4, 4, 60, 5, 40, 30
TOKENIZER = "processor/tokenizer.json"
COLOURS = ("red", "green", "blue", "white", "black", "grey")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a store, which a stranger may choose."""

    id: str = "sample {index:03d}"
    question: str = "what colour is number {index}?"
    answer: str = "it is {colour}"
    reason: str = "image is damaged"
    sources: tuple[str, str] = ("first set", "second set")
    image: str = "pictures/{index}.png"
    piece: str = "word{number}"


def made_store(
    path: Path,
    *,
    samples: int = 130,
    texts: Texts | None = None,
    seed: int = 0,
    shards: Collection[int] | None = None,
    embed: bool = True,
    top_k: int = 4,
) -> Path:
    """Write a store, or some of its shards, and return its path.

    Args:
        seed: of the targets; stores of other seeds hold the same samples.
        shards: numbers of the shards to write; by default all that are missing.
        embed: whether the store contains the image files.
    """
    texts = texts or Texts()
    tokenizer = _tokenizer(texts)
    manifest = _manifest(samples, texts, tokenizer, embed, top_k)
    writer = open_writer(path, manifest, {TOKENIZER: tokenizer})
    for shard in writer.pending_shards() if shards is None else shards:
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if is_unusable(index):
                    sink.quarantine(index, _filled(texts.id, index), texts.reason)
                else:
                    sink.append(made_record(index, texts=texts, seed=seed, embed=embed, top_k=top_k))
            sink.commit()
    return path


def is_unusable(index: int) -> bool:
    """Whether the sample of an index is quarantined."""
    return index % 11 == 10


def made_image(index: int) -> bytes:
    """The PNG of a sample's image."""
    rng = np.random.default_rng(9000 + index)
    blocks = rng.integers(0, 255, (3, 4, 3), np.uint8).repeat(HEIGHT // 3, 0).repeat(WIDTH // 4, 1)
    content = io.BytesIO()
    Image.fromarray(blocks).save(content, "PNG")
    return content.getvalue()


def made_record(index: int, *, texts: Texts, seed: int, embed: bool, top_k: int) -> Record:
    """The record of an index."""
    sequence, rng = _sequence(index), np.random.default_rng([seed, index])
    vision, queries = sequence["vision_positions"], sequence["tqv_query_positions"]
    image, name = made_image(index), _filled(texts.image, index)
    has_image = len(vision) > 0
    labels = sequence["labels"][1:][sequence["labels"][1:] != -100]
    return Record(
        key=hashlib.sha256(f"key {index}".encode()).hexdigest(),
        id=_filled(texts.id, index),
        index=index,
        conversations=[
            {"from": "human", "value": _filled(texts.question, index)},
            {"from": "gpt", "value": _filled(texts.answer, index)},
        ],
        images=(name,) if has_image else (),
        image_sha256=(hashlib.sha256(image).hexdigest(),) if has_image else (),
        image_bytes=(image,) if has_image and embed else (),
        **sequence,
        attention=_attention(rng, len(queries)) if has_image else None,
        vision_top_index=np.sort(rng.permutation(ROWS * COLUMNS)[:TOP]).astype(np.uint16) if has_image else None,
        vision_embeddings=(rng.normal(size=(ROWS * COLUMNS, 6)).astype(np.float16),) if has_image else None,
        vision_top_embeddings=rng.normal(size=(TOP, 6)).astype(np.float16) if has_image else None,
        logits=_logits(rng, labels, top_k),
    )


def _manifest(samples: int, texts: Texts, tokenizer: bytes, embed: bool, top_k: int) -> Manifest:
    first = samples // 3
    return Manifest(
        fingerprint={"weights": "w", "tokenizer": "t"},
        data_fingerprint={"conversations": "c"},
        shapes=Shapes(
            num_heads=HEADS,
            hidden_size=6,
            vision_tokens=ROWS * COLUMNS,
            vision_top_tokens=TOP,
            vocab_size=VOCABULARY,
        ),
        codecs=Codecs(
            attention="float16",
            vision_top="float16",
            vision_all="float16",
            logits=LogitsCodec(kind="topk", top_k=top_k),
        ),
        inputs="embed" if embed else "reference",
        attachments={TOKENIZER: hashlib.sha256(tokenizer).hexdigest()},
        num_samples=samples,
        sources=(
            StoredSource(name=texts.sources[0], num_samples=first),
            StoredSource(name=texts.sources[1], num_samples=samples - first),
        ),
        shard_size=20,
        seed=1,
    )


def _tokenizer(texts: Texts) -> bytes:
    """A tokenizer.json of whole words."""
    vocabulary = {texts.piece.replace("{number}", str(number)): number for number in range(VOCABULARY)}
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": next(iter(vocabulary))},
    }  # fmt: skip
    return json.dumps(document).encode()


def _sequence(index: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(100 + index)
    prompt, answer = int(rng.integers(4, 9)), int(rng.integers(2, 12))
    ids = rng.integers(1, VOCABULARY, prompt + answer).astype(np.int32)
    labels = np.full(len(ids), -100, np.int32)
    labels[prompt:] = ids[prompt:]
    tokens = 0 if index % 7 == 6 else ROWS * COLUMNS
    if tokens:
        ids[2] = -200
    shift = tokens - 1 if tokens else 0
    length = len(ids) + shift
    return {
        "input_ids": ids,
        "labels": labels,
        "vision_positions": np.arange(2, 2 + tokens, dtype=np.int32),
        "tqv_query_positions": np.arange(2 + tokens, length, dtype=np.int32) if tokens else np.empty(0, np.int32),
        "supervised_positions": np.arange(prompt - 1 + shift, length - 1, dtype=np.int32),
    }


def _attention(rng: np.random.Generator, queries: int) -> NDArray[np.float16]:
    values = rng.exponential(size=(1, queries, HEADS, ROWS * COLUMNS)) ** 2
    share = rng.uniform(0.2, 0.9, (1, queries, HEADS, 1))
    found: NDArray[np.float16] = (share * values / values.sum(-1, keepdims=True)).astype(np.float16)
    return found


def _logits(rng: np.random.Generator, labels: NDArray[np.int32], top_k: int) -> TruncatedLogits:
    """The most probable tokens, and the label."""
    values = rng.normal(size=(len(labels), VOCABULARY)) * 2
    values[np.arange(len(labels)), labels] += 3
    logprobs = values - np.log(np.exp(values).sum(1, keepdims=True))
    kept = [
        np.unique([*np.argsort(-row)[:top_k].tolist(), label])
        for row, label in zip(logprobs, labels.tolist(), strict=True)
    ]
    tails = [max(1e-12, 1 - np.exp(row[ids]).sum()) for row, ids in zip(logprobs, kept, strict=True)]
    return TruncatedLogits(
        ids=np.concatenate(kept).astype(np.uint16),
        logprobs=np.concatenate([row[ids] for row, ids in zip(logprobs, kept, strict=True)]).astype(np.float16),
        offsets=np.cumsum([0, *map(len, kept)]).astype(np.int64),
        tail_logmass=np.log(tails).astype(np.float32),
    )


def _filled(text: str, index: int) -> str:
    """`{index}` and `{colour}` filled in; other braces stay."""
    found = text.replace("{index:03d}", f"{index:03d}").replace("{index}", str(index))
    return found.replace("{colour}", COLOURS[index % len(COLOURS)])
