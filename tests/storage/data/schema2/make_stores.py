"""Writes the stores of schema 2 in this folder. It runs with the code of commit 9aff02c only, the last that wrote them.

    python make_stores.py

`stores.tar.xz` holds the stores, `expected.json` what the reader of that commit returned for each.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from alignkd.storage import (
    PROFILES,
    Codecs,
    EncodedArray,
    HiddenStates,
    LogitsCodec,
    Manifest,
    Record,
    SampledLogits,
    Shapes,
    StoreReader,
    TruncatedLogits,
    as_float32,
    open_writer,
    verify_store,
)
from alignkd.storage.codecs import get_codec

HERE = Path(__file__).parent
FULL = {"kind": "full", "dtype": "float32"}
FLOAT32 = {"attention": "float32", "vision_top": "float32", "vision_all": "float32", "logits": FULL}
CODECS: dict[str, dict[str, Any]] = {
    "exact": PROFILES["exact"],
    "compact": PROFILES["compact"],
    "float32": FLOAT32,
    "stem": PROFILES["stem"],
    "tqt": {**PROFILES["compact"], "attention_pairs": "tqt", "logits": {"kind": "topk", "top_k": 3}},
    "vqv": {**FLOAT32, "attention_pairs": "vqv", "logits": {"kind": "sampled", "num_draws": 50}},
    "top": {"attention": "none", "vision_top": "int8_channel", "vision_all": "none", "logits": {"kind": "none"}},
}
SHAPES = Shapes(num_heads=3, hidden_size=8, vision_tokens=4, vocab_size=48, vision_top_tokens=2)
# the images of each sample; samples 2 and 4 share both, sample 8 is unusable
IMAGES: tuple[tuple[str, ...], ...] = (
    ("a.png",), (), ("b.png", "c.jpg"), ("c.jpg",), ("b.png", "c.jpg"), ("a.png", "b.png", "a.png"), (), ("a.png",), (),
)  # fmt: skip


def manifest(name: str, backend: str, inputs: str) -> Manifest:
    return Manifest(
        fingerprint={"weights": "w", "tokenizer": "t", "vision_tokens": "4"},
        data_fingerprint={"conversations": "c"},
        shapes=SHAPES,
        codecs=Codecs(**CODECS[name]),
        backend=backend,
        inputs=inputs,
        attachments={file: hashlib.sha256(content).hexdigest() for file, content in attachments(name).items()},
        num_samples=len(IMAGES),
        shard_size=5,
        seed=3,
    )


def attachments(name: str) -> dict[str, bytes]:
    files = {"notes.txt": b"a file of the whole store"}
    if name == "exact":
        weight = np.random.default_rng(9).normal(size=(SHAPES.vocab_size, SHAPES.hidden_size)).astype(np.float32)
        files["lm_head.safetensors"] = save({"lm_head.weight": weight})
    return files


def record(store: Manifest, index: int) -> Record:
    rng, names, P = np.random.default_rng(index), IMAGES[index], SHAPES.vision_tokens
    k = len(names)
    ids = [1, 5, 6, *rng.integers(3, SHAPES.vocab_size, 4 + index).tolist()]
    labels = [-100] * 4 + ids[4:]
    for at in sorted(rng.integers(1, 4, k).tolist(), reverse=True):
        ids.insert(at, -200)
        labels.insert(at, -100)
    kinds = np.concatenate([np.ones(P, bool) if token == -200 else [False] for token in ids])
    spliced = np.concatenate([np.full(P, -100) if i == -200 else [label] for i, label in zip(ids, labels, strict=True)])
    vision = np.flatnonzero(kinds).astype(np.int32)
    queries = np.arange(vision[-1] + 1, len(kinds), dtype=np.int32) if k else vision
    supervised = np.flatnonzero(spliced[1:] != -100).astype(np.int32)
    content = [b"\x89PNG\r\n\x1a\n" + name.encode() * 3 for name in names]
    return Record(
        key=hashlib.sha256(f"key {index}".encode()).hexdigest(),
        id=f"sample-{index % 4} ж",
        index=index,
        conversations=[{"from": "human", "value": "что это? \ud800"}, {"from": "gpt", "value": "a" * index}],
        images=names,
        image_sha256=tuple(hashlib.sha256(file).hexdigest() for file in content),
        image_bytes=tuple(content) if store.inputs == "embed" else (),
        input_ids=np.array(ids, np.int32),
        labels=np.array(labels, np.int32),
        vision_positions=vision,
        tqv_query_positions=queries,
        supervised_positions=supervised,
        logits=logits(store.codecs.logits, rng, spliced[1:][spliced[1:] != -100]),
        **(targets(store.codecs, rng, names, len(queries)) if k else {}),
    )


def targets(codecs: Codecs, rng: np.random.Generator, names: tuple[str, ...], Q: int) -> dict[str, Any]:
    Ht, Dt, P, k = SHAPES.num_heads, SHAPES.hidden_size, SHAPES.vision_tokens, len(names)
    shape = {"tqv": (k, Q, Ht, P), "vqv": (k, k * P, Ht, P), "tqt": (1, Q, Ht, Q + 2)}[codecs.attention_pairs]
    every = np.stack([np.random.default_rng(ord(name[0])).normal(size=(P, Dt)) * ord(name[0]) for name in names])
    index = np.sort(rng.permutation(k * P)[: SHAPES.vision_top_tokens]).astype(np.uint16)
    found: dict[str, Any] = {}
    if codecs.attention not in ("none", "stem"):
        found["attention"] = as_stored(codecs.attention, rng.random(shape) / (shape[0] * shape[-1]))
    if codecs.vision_all not in ("none", "stem"):
        found["vision_embeddings"] = as_stored(codecs.vision_all, every)
    if codecs.vision_top not in ("none", "stem"):
        found["vision_top_index"] = index
        if codecs.vision_top != "from_all":
            found["vision_top_embeddings"] = as_stored(codecs.vision_top, every.reshape(k * P, Dt)[index])
    return found


def as_stored(codec: str, values: Any) -> Any:
    encoded = EncodedArray.encode(codec, np.asarray(values, np.float32))
    return encoded.parts[""] if get_codec(codec).plain else encoded


def logits(codec: LogitsCodec, rng: np.random.Generator, labels: Any) -> Any:
    V, N = SHAPES.vocab_size, len(labels)
    values = rng.normal(size=(N, V)) * 3
    values[np.arange(N), labels] += 20  # the label is among the kept entries
    if codec.kind == "full":
        return values.astype(np.float32)
    if codec.kind == "hidden":
        return HiddenStates(states=as_stored(codec.dtype or "", rng.normal(size=(N, SHAPES.hidden_size))))
    logprobs = values - np.log(np.exp(values).sum(1, keepdims=True))
    if codec.kind == "sampled":
        draws = np.stack([rng.multinomial(50, row / row.sum()) for row in np.exp(logprobs)])
        offsets = np.concatenate([[0], np.cumsum((draws > 0).sum(1))])
        entropy = -(np.exp(logprobs) * logprobs).sum(1).astype(np.float32)
        ids, counts = np.nonzero(draws)[1].astype(np.uint16), draws[draws > 0].astype(np.uint8)
        return SampledLogits(ids=ids, counts=counts, offsets=offsets, entropy=entropy)
    if codec.kind == "none":
        return None
    count = 3 if codec.kind == "topk" else 40
    ids = np.sort(np.argsort(-logprobs, 1)[:, :count], 1)
    kept = np.take_along_axis(logprobs, ids, 1)
    tail = np.log(np.maximum(1 - np.exp(kept).sum(1), 1e-30)).astype(np.float32)
    return TruncatedLogits(
        ids=ids.ravel().astype(np.uint16),
        logprobs=kept.ravel().astype(np.float16),
        offsets=np.arange(N + 1) * count,
        tail_logmass=tail,
    )


def digest(values: Any) -> str:
    array = np.ascontiguousarray(values)
    return f"{array.dtype.str}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"


def of_record(found: Record) -> dict[str, Any]:
    """The fields of a record; the axes of images and tokens of `vision_embeddings` are joined."""
    fields: dict[str, Any] = {
        name: getattr(found, name) for name in ("key", "id", "index", "conversations", "images", "image_sha256")
    }
    fields["image_bytes"] = [digest(np.frombuffer(file, np.uint8)) for file in found.image_bytes]
    for name in (
        "input_ids", "labels", "vision_positions", "tqv_query_positions", "supervised_positions", "vision_top_index"
    ):  # fmt: skip
        values = getattr(found, name)
        fields[name] = None if values is None else digest(values)
    for name in ("attention", "vision_top_embeddings", "vision_embeddings"):
        target = getattr(found, name)
        values = None if target is None else as_float32(target)
        if values is not None and name == "vision_embeddings":
            values = values.reshape(-1, values.shape[-1])
        fields[name] = None if target is None else digest(values)
        fields[f"{name}_codec"] = target.codec if isinstance(target, EncodedArray) else None
    kind = found.logits
    if isinstance(kind, HiddenStates):
        fields["logits"] = {"states": digest(as_float32(kind.states))}
    elif isinstance(kind, TruncatedLogits | SampledLogits):
        fields["logits"] = {name: digest(values) for name, values in kind.__dict__.items()}
    else:
        fields["logits"] = None if kind is None else digest(kind)
    return fields


def of_store(path: Path) -> dict[str, Any]:
    reader = StoreReader(path)
    assert verify_store(path, deep=True).ok
    document = {
        "manifest_hash": reader.manifest.manifest_hash(),
        "root_hash": reader.root_hash(),
        "codecs": reader.manifest.codecs.model_dump(),
        "shapes": reader.manifest.shapes.model_dump(),
        "quarantined": [[entry.index, entry.id, entry.reason] for entry in reader.quarantined],
        "records": [of_record(record) for record in reader],
    }
    for name in ("num_tokens", "sequence_lengths", "num_queries", "num_supervised", "num_images", "has_image"):
        document[name] = getattr(reader, name).tolist()
    if reader.manifest.codecs.logits.kind not in ("none", "sampled"):
        document["logprobs"] = [np.round(reader.logprobs(n).dense()[:1, :4], 4).tolist() for n in range(len(reader))]
    return document


def write(path: Path, name: str, backend: str, inputs: str) -> None:
    writer = open_writer(path, manifest(name, backend, inputs), attachments(name))
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if index == len(IMAGES) - 1:
                    sink.quarantine(index, f"sample-{index % 4} ж", "image 'x.png' is damaged")
                else:
                    sink.append(record(writer.manifest, index))
            sink.commit()


if __name__ == "__main__":
    expected = {}
    archive = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(HERE / "stores.tar.xz", "w:xz") as packed:
        for name in CODECS:
            for backend in ("zarr", "webdataset"):
                both = name in ("exact", "compact", "float32")
                for inputs in ("reference", "embed") if both else ("embed" if backend == "zarr" else "reference",):
                    path = Path(folder) / f"{name}-{backend}-{inputs}"
                    write(path, name, backend, inputs)
                    expected[path.name] = of_store(path)
                    packed.add(path, path.name)
    (HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
