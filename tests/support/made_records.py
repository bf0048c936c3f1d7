"""Small stores of made-up records: fixtures that a conftest.py imports. Every record is a pure function of its index.

Where `shapes.vision_tokens` is None, records have up to three images of different sizes whose tokens are not
contiguous, and one id for every position.
"""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alignkd.storage import (
    Codecs,
    EncodedArray,
    HiddenStates,
    LogitsCodec,
    Manifest,
    Record,
    SampledLogits,
    Shapes,
    TruncatedLogits,
    open_writer,
)
from alignkd.storage.codecs import get_codec
from alignkd.storage.record.images import vision_rows

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., Record]
WriteStore = Callable[..., Path]

CODECS = Codecs(
    attention="float16", vision_top="float16", vision_all="float16", logits=LogitsCodec(kind="topk", top_k=3)
)


@pytest.fixture(scope="session")
def make_manifest() -> MakeManifest:
    def make(**fields: Any) -> Manifest:
        defaults: dict[str, Any] = {
            "fingerprint": {"weights": "w0", "tokenizer": "t0"},
            "data_fingerprint": {"conversations": "c0"},
            "shapes": Shapes(num_heads=2, hidden_size=6, vision_tokens=5, vocab_size=40, vision_top_tokens=3),
            "codecs": CODECS,
            "num_samples": 10,
            "shard_size": 4,
            "seed": 1,
        }
        return Manifest(**defaults | fields)

    return make


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    """make_record(manifest, index, ...): every fourth sample is text-only, every two neighbours share an image."""

    def make(manifest: Manifest, index: int, *, text_only: bool | None = None, **fields: Any) -> Record:
        rng = np.random.default_rng(index)
        has_image = index % 4 != 3 if text_only is None else not text_only
        names, tokens = _images(manifest, index) if has_image else ((), ())
        sequence = _sequence(manifest, rng, tokens)
        files = tuple(name.encode() for name in names)
        record: dict[str, Any] = {
            "key": _sha(f"key {index}"),
            "id": f"sample-{index % 7}",
            "index": index,
            "conversations": [
                {"from": "human", "value": "чьё это? これは何ですか"},
                {"from": "gpt", "value": "a" * index},
            ],
            "images": names,
            "image_sha256": tuple(map(_sha, names)),
            "image_bytes": files if manifest.inputs == "embed" else (),
            **sequence,
            "tokens_of_image": tokens,
            **_targets(manifest, rng, np.random.default_rng(1000 + index // 2), tokens, sequence),
        }
        record["more"] = _more(manifest, rng, np.random.default_rng(2000 + index // 2), tokens, sequence)
        return Record(**record | fields)

    return make


@pytest.fixture(scope="session")
def write_store(make_record: MakeRecord) -> WriteStore:
    """write_store(path, manifest, ...) writes or completes a store and returns its path."""

    def write(
        path: Path,
        manifest: Manifest,
        *,
        shards: Collection[int] | None = None,
        quarantine: Collection[int] = (),
        record_of: Callable[[int], Record] | None = None,
    ) -> Path:
        record_of = record_of or (lambda index: make_record(manifest, index))
        writer = open_writer(path, manifest)
        for shard in writer.pending_shards() if shards is None else shards:
            with writer.open_shard(shard) as sink:
                for index in writer.planned_samples(shard).tolist():
                    if index in quarantine:
                        sink.quarantine(index, f"sample-{index % 7}", "image is damaged")
                    else:
                        sink.append(record_of(index))
                sink.commit()
        return path

    return write


@pytest.fixture
def small_store(tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore) -> Path:
    """Ten records in three shards, two samples quarantined."""
    return write_store(tmp_path / "store", make_manifest(), quarantine=(4, 7))


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Record, Record], None]:
    """assert_same(a, b): every field equal to the bit, dtypes included."""
    return _assert_same


@pytest.fixture(scope="session")
def tree_bytes() -> Callable[[Path], dict[str, bytes]]:
    """tree_bytes(folder): every file below it and its content."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class _Fields:
    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


def _assert_same(found: Any, expected: Any) -> None:
    assert found.__dict__.keys() == expected.__dict__.keys()
    for name, value in expected.__dict__.items():
        other = getattr(found, name)
        if name == "attention_pairs":  # not stored in records: readers set it
            continue
        if isinstance(value, TruncatedLogits | SampledLogits | HiddenStates):
            _assert_same(other, value)
        elif isinstance(value, EncodedArray):
            assert isinstance(other, EncodedArray) and other.same_as(value), name
        elif name in ("vision_embeddings", "more") and value is not None:
            keys = range(len(value)) if isinstance(value, tuple) else sorted(value)
            assert isinstance(other, type(value)) and len(other) == len(value), name
            _assert_same(
                _Fields({str(key): other[key] for key in keys}), _Fields({str(key): value[key] for key in keys})
            )
        elif isinstance(value, np.ndarray):
            assert (other.dtype, other.shape) == (value.dtype, value.shape), name
            assert other.tobytes() == value.tobytes(), name
        else:
            assert other == value, name


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _images(manifest: Manifest, index: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the images that two neighbours share, and their tokens."""
    if manifest.shapes.vision_tokens is not None:
        return (f"scenes/{index // 2}.png",), (manifest.shapes.vision_tokens,)
    rng = np.random.default_rng(500 + index // 2)
    tokens = tuple(rng.integers(1, 8, int(rng.integers(1, 4))).tolist())
    return tuple(f"scenes/{index // 2}-{number}.png" for number in range(len(tokens))), tokens


def _sequence(manifest: Manifest, rng: np.random.Generator, tokens: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    T = int(rng.integers(6, 30))
    at = int(rng.integers(0, T - 2))
    input_ids = rng.integers(3, manifest.shapes.vocab_size, T).astype(np.int32)
    labels = np.full(T, -100, np.int32)
    labels[at + 2 :] = input_ids[at + 2 :]
    if tokens and manifest.shapes.vision_tokens is None:
        return _spliced(input_ids, labels, at, tokens)
    P = sum(tokens)
    shift = P - 1 if tokens else 0
    vision = np.arange(at, at + P, dtype=np.int32) if tokens else np.empty(0, np.int32)
    queries = np.arange(at + P, T + shift, dtype=np.int32) if tokens else np.empty(0, np.int32)
    if tokens:
        input_ids[at] = -200
    supervised = (np.flatnonzero(labels[1:] != -100) + shift).astype(np.int32)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "vision_positions": vision,
        "tqv_query_positions": queries,
        "supervised_positions": supervised,
    }


def _spliced(
    ids: NDArray[np.int32], labels: NDArray[np.int32], at: int, tokens: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """Images put in at a position, each vision token with an id of its own, and text after every third."""
    kinds = [number % 4 < 3 for count in tokens for number in range(count + count // 3)]
    is_vision = np.concatenate([np.zeros(at, np.bool_), kinds, np.zeros(len(ids) - at, np.bool_)])
    vision = np.flatnonzero(is_vision).astype(np.int32)
    middle = np.where(kinds, 2, 1).astype(np.int32)
    spliced = np.concatenate([labels[:at], np.full(len(kinds), -100, np.int32), labels[at:]])
    return {
        "input_ids": np.concatenate([ids[:at], middle, ids[at:]]),
        "labels": spliced,
        "vision_positions": vision,
        "tqv_query_positions": np.arange(vision[-1] + 1, len(spliced), dtype=np.int32),
        "supervised_positions": np.flatnonzero(spliced[1:] != -100).astype(np.int32),
    }


def _targets(
    manifest: Manifest,
    rng: np.random.Generator,
    image_rng: np.random.Generator,
    tokens: tuple[int, ...],
    sequence: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    shapes, codecs = manifest.shapes, manifest.codecs
    P, Q = len(sequence["vision_positions"]), len(sequence["tqv_query_positions"])
    rows, columns = {"tqv": (Q, P), "vqv": (P, P), "tqt": (Q, 2 * Q + 1)}[codecs.attention_pairs]
    embeddings = [image_rng.normal(size=(count, shapes.hidden_size)) for count in tokens]
    top = np.sort(rng.permutation(P)[: shapes.vision_top_tokens]).astype(np.uint16)
    targets: dict[str, Any] = {"logits": _logits(manifest, codecs.logits, rng, len(sequence["supervised_positions"]))}
    if P and codecs.attention != "none":
        targets["attention"] = _as_stored(codecs.attention, rng.random((1, rows, shapes.num_heads, columns)))
    if P and codecs.vision_all != "none":
        targets["vision_embeddings"] = tuple(_as_stored(codecs.vision_all, image) for image in embeddings)
    if P and codecs.vision_top != "none":
        targets["vision_top_index"] = top
        from_all = codecs.vision_top == "from_all"
        targets["vision_top_embeddings"] = (
            vision_rows(targets["vision_embeddings"], top)
            if from_all
            else _as_stored(codecs.vision_top, np.concatenate(embeddings)[top])
        )
    return targets


def _more(
    manifest: Manifest,
    rng: np.random.Generator,
    image_rng: np.random.Generator,
    tokens: tuple[int, ...],
    sequence: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    """The further targets that the manifest names."""
    P, N = len(sequence["vision_positions"]), len(sequence["supervised_positions"])
    placeholders = int(np.count_nonzero(sequence["input_ids"] == -200))
    text = len(sequence["input_ids"]) - (placeholders or P)
    numbers = {
        "tqv_query": len(sequence["tqv_query_positions"]),
        "text": text,
        "vision": P,
        "supervised": N,
        "record": 1,
        "image": len(tokens),
        "image_token": P,
        "own": int(rng.integers(0, 4)),
    }
    more: dict[str, Any] = {}
    for target in manifest.more:
        images_only = target.rows in ("tqv_query", "vision", "image", "image_token") or target.columns == "vision"
        if not tokens and (images_only or target.forward_pass != "sample"):
            continue
        if isinstance(target.codec, LogitsCodec):
            more[target.name] = _logits(manifest, target.codec, rng, N)
            continue
        shape = [numbers[target.rows]]
        if target.heads is not None or len(target.layers) > 1:
            shape.append((target.heads or 1) * max(1, len(target.layers)))
        if target.width is not None or target.columns is not None:
            shape.append(target.width or {"vision": P, "text": text}[target.columns or ""])
        source = image_rng if target.rows.startswith("image") else rng
        more[target.name] = _as_stored(target.codec or "", source.random(tuple(shape)))
    return more


def _as_stored(codec: str, values: NDArray[Any]) -> Any:
    """What a reader will give: floats of a plain codec, else the encoded values."""
    encoded = EncodedArray.encode(codec, values.astype(np.float32))
    return encoded.parts[""] if get_codec(codec).plain else encoded


def _logits(manifest: Manifest, codec: LogitsCodec, rng: np.random.Generator, N: int) -> Any:
    V = manifest.shapes.vocab_size
    values = rng.normal(size=(N, V)) * 3
    if codec.kind == "none":
        return None
    if codec.kind == "full":
        return values.astype(codec.dtype)
    if codec.kind == "hidden":
        assert codec.dtype is not None
        return HiddenStates(states=_as_stored(codec.dtype, rng.normal(size=(N, manifest.shapes.hidden_size))))
    logprobs = values - np.log(np.exp(values).sum(1, keepdims=True))
    if codec.kind == "sampled":
        assert codec.num_draws is not None
        return _sampled(logprobs, rng, codec.num_draws)
    return _truncated(logprobs, rng, codec)


def _truncated(logprobs: NDArray[np.float64], rng: np.random.Generator, codec: LogitsCodec) -> TruncatedLogits:
    """Arbitrary entries for `topk`; for `nucleus` the most probable ones."""
    N, V = logprobs.shape
    if codec.top_k is not None:
        counts = rng.integers(1, codec.top_k + 2, N)  # the label may add one
        kept = [np.sort(rng.permutation(V)[:count]) for count in counts]
    else:
        assert codec.p is not None and codec.min_entries is not None and codec.max_entries is not None
        order = np.argsort(-logprobs)
        needed = (np.cumsum(np.exp(np.take_along_axis(logprobs, order, 1)), 1) < codec.p).sum(1) + 1
        counts = np.clip(needed, codec.min_entries, codec.max_entries)
        kept = [np.sort(order[n, :count]) for n, count in enumerate(counts)]
    tails = [1 - np.exp(logprobs[n, ids]).sum() for n, ids in enumerate(kept)]
    assert codec.dtype is not None
    return TruncatedLogits(
        ids=np.concatenate([np.empty(0), *kept]).astype(np.uint16),
        logprobs=np.concatenate([np.empty(0), *(logprobs[n, ids] for n, ids in enumerate(kept))]).astype(codec.dtype),
        offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in kept])]).astype(np.int64),
        tail_logmass=np.log(np.maximum(np.array(tails), 1e-30)).astype(np.float32),
    )


def _sampled(logprobs: NDArray[np.float64], rng: np.random.Generator, num_draws: int) -> SampledLogits:
    probs = np.exp(logprobs)
    draws = [rng.multinomial(num_draws, row / row.sum()) for row in probs]
    return SampledLogits(
        ids=np.concatenate([np.empty(0), *(np.flatnonzero(row) for row in draws)]).astype(np.uint16),
        counts=np.concatenate([np.empty(0), *(row[row > 0] for row in draws)]).astype(
            np.uint8 if num_draws < 256 else np.uint16
        ),
        offsets=np.concatenate([[0], np.cumsum([np.count_nonzero(row) for row in draws])]).astype(np.int64),
        entropy=-(probs * logprobs).sum(1).astype(np.float32),
    )
