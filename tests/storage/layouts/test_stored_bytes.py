"""The bytes on disk are pinned: a store written today must be the same, and readable, tomorrow.

If this fails after a deliberate change of layout, raise `SCHEMA_VERSION` and write the new checksums with
`python tests/storage/layouts/test_stored_bytes.py` from the repository's root.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkd.storage import (
    Codecs,
    EncodedArray,
    LogitsCodec,
    Manifest,
    Record,
    SampledLogits,
    Shapes,
    StoreReader,
    TruncatedLogits,
    open_writer,
)

PINNED = Path(__file__).with_name("stored_bytes.json")
IMAGES = [b"\x89PNG even", b"\x89PNG odd, longer"]
STORES: dict[str, dict[str, Any]] = {
    "floats": {
        "codecs": Codecs(attention_pairs="tqt", vision_all="float32", logits=LogitsCodec(kind="topk", top_k=2)),
    },
    "encoded": {
        "codecs": Codecs(
            attention="sqrt_u8",
            vision_top="from_all",
            vision_all="int8_channel",
            logits=LogitsCodec(kind="sampled", num_draws=5),
        ),
        "inputs": "embed",
    },
    "tar": {
        "codecs": Codecs(attention="bfloat16", attention_pairs="tqt", logits=LogitsCodec(kind="topk", top_k=2)),
        "inputs": "embed",
        "backend": "webdataset",
    },
}


def manifest(name: str) -> Manifest:
    return Manifest(
        fingerprint={"weights": "w"},
        data_fingerprint={},
        shapes=Shapes(num_heads=2, hidden_size=4, vision_tokens=3, vocab_size=50, vision_top_tokens=2),
        num_samples=4,
        shard_size=2,
        seed=0,
        **STORES[name],
    )


def record(store: Manifest, index: int) -> Record:
    """Numbers from formulas: no random generator, whose stream may change."""
    image = index != 2
    tail = [1, -200, 7, 8, 9] if image else [1, 7, 8, 9]
    positions = np.arange(6 if image else 3, dtype=np.int32)
    columns = 1 + index if store.codecs.attention_pairs == "tqt" else 3
    embed = store.inputs == "embed"
    return Record(
        key=f"{index:064x}",
        id=f"id {index} ж",
        index=index,
        conversations=[{"from": "human", "value": "?" * index}, {"from": "gpt", "value": "да"}],
        images=(f"{index % 2}.png",) if image else (),
        image_sha256=(hashlib.sha256(IMAGES[index % 2]).hexdigest() if embed else f"{index % 2:064x}",)
        if image
        else (),
        image_bytes=(IMAGES[index % 2],) if image and embed else (),
        input_ids=np.array(tail, np.int32),
        labels=np.array([-100] * (len(tail) - 2) + tail[-2:], np.int32),
        vision_positions=np.array([1, 2, 3] if image else [], np.int32),
        tqv_query_positions=positions[4:] if image else positions[:0],
        supervised_positions=positions[-2:],
        attention=fraction((1, 2, 2, columns), 7) if image else None,
        vision_top_index=np.array([2, 0], np.uint16) if image else None,
        vision_top_embeddings=fraction((2, 4), 3) if image and store.codecs.vision_top != "from_all" else None,
        vision_embeddings=(fraction((3, 4), 5),) if image else None,
        logits=truncated() if store.codecs.logits.kind == "topk" else sampled(),
    )


def fraction(shape: tuple[int, ...], divisor: int) -> np.ndarray:
    """0, 1 / divisor, ... below 1."""
    return (np.arange(np.prod(shape)).reshape(shape) % divisor / divisor).astype(np.float32)


def truncated() -> TruncatedLogits:
    return TruncatedLogits(
        ids=np.array([3, 49, 4], np.uint16),
        logprobs=np.array([-1, -2, -3], np.float32),
        offsets=np.array([0, 2, 3], np.int64),
        tail_logmass=np.log([1 - np.exp(-1) - np.exp(-2), 1 - np.exp(-3)]).astype(np.float32).round(4),
    )


def sampled() -> SampledLogits:
    return SampledLogits(
        ids=np.array([3, 49, 4], np.uint16),
        counts=np.array([4, 1, 5], np.uint8),
        offsets=np.array([0, 2, 3], np.int64),
        entropy=np.array([0.5, 0], np.float32),
    )


def checksums(folder: Path, name: str) -> dict[str, str]:
    """sha256 and length of every data file of the store; `zarr.json` is zarr-python's to spell."""
    writer = open_writer(folder / name, manifest(name))
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                sink.append(record(writer.manifest, index))
            sink.commit()
    return {
        f"{commit.shard}/{entry.path}": f"{entry.sha256} {entry.bytes}"
        for commit in StoreReader(folder / name).commits
        for entry in commit.files
        if not entry.path.endswith("zarr.json")
    }


@pytest.mark.parametrize("name", STORES)
def test_stored_bytes_are_pinned(tmp_path: Path, name: str) -> None:
    assert checksums(tmp_path, name) == json.loads(PINNED.read_text())[name], "changed bytes need a new schema version"
    reader = StoreReader(tmp_path / name)
    assert {type(reader[place].attention) for place in reader.find(index=0)} == {
        np.ndarray if name == "floats" else EncodedArray
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PINNED.write_text(json.dumps({name: checksums(Path(folder), name) for name in STORES}, indent=1) + "\n")
    sys.stdout.write(f"wrote {PINNED}\n")
