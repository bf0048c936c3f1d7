"""The bytes on disk are pinned: a store written today must be the same, and readable, tomorrow.

If this fails after a deliberate change of layout, raise `SCHEMA_VERSION` and write the new checksums with
`python tests/storage/test_stored_bytes.py` from the repository's root.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from storage import Codecs, LogitsCodec, Manifest, Record, Shapes, StoreReader, StoreWriter, TruncatedLogits

PINNED = Path(__file__).with_name("stored_bytes.json")


def manifest() -> Manifest:
    return Manifest(
        fingerprint={"weights": "w"},
        data_fingerprint={},
        shapes=Shapes(num_heads=2, hidden_size=4, vision_tokens=3, vocab_size=50, vision_top_tokens=2),
        codecs=Codecs(attention_pairs="tqt", vision_all="float32", logits=LogitsCodec(kind="topk", top_k=2)),
        num_samples=4,
        shard_size=2,
        seed=0,
    )


def record(index: int) -> Record:
    """Numbers from formulas: no random generator, whose stream may change."""
    image = index != 2
    tail = [1, -200, 7, 8, 9] if image else [1, 7, 8, 9]
    positions = np.arange(6 if image else 3, dtype=np.int32)
    return Record(
        key=f"{index:064x}",
        id=f"id {index} ж",
        index=index,
        conversations=[{"from": "human", "value": "?" * index}, {"from": "gpt", "value": "да"}],
        image=f"{index % 2}.png" if image else None,
        image_sha256=f"{index % 2:064x}" if image else None,
        input_ids=np.array(tail, np.int32),
        labels=np.array([-100] * (len(tail) - 2) + tail[-2:], np.int32),
        vision_positions=np.array([1, 2, 3] if image else [], np.int32),
        tqv_query_positions=positions[4:] if image else positions[:0],
        supervised_positions=positions[-2:],
        attention=fraction((2, 2, 1 + index), 7) if image else None,
        vision_top_index=np.array([2, 0], np.uint16) if image else None,
        vision_top_embeddings=fraction((2, 4), 3) if image else None,
        vision_embeddings=fraction((3, 4), 5) if image else None,
        logits=TruncatedLogits(
            ids=np.array([3, 49, 4], np.uint16),
            logprobs=np.array([-1, -2, -3], np.float32),
            offsets=np.array([0, 2, 3], np.int64),
            tail_logmass=np.log([1 - np.exp(-1) - np.exp(-2), 1 - np.exp(-3)]).astype(np.float32).round(4),
        ),
    )


def fraction(shape: tuple[int, ...], divisor: int) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) / divisor).astype(np.float32)


def checksums(folder: Path) -> dict[str, str]:
    """sha256 and length of every data file of the store; `zarr.json` is zarr-python's to spell."""
    writer = StoreWriter(folder / "store", manifest())
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                sink.append(record(index))
            sink.commit()
    return {
        f"{commit.shard}/{entry.path}": f"{entry.sha256} {entry.bytes}"
        for commit in StoreReader(folder / "store").commits
        for entry in commit.files
        if not entry.path.endswith("zarr.json")
    }


def test_stored_bytes_are_pinned(tmp_path: Path) -> None:
    assert checksums(tmp_path) == json.loads(PINNED.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        PINNED.write_text(json.dumps(checksums(Path(folder)), indent=1) + "\n")
    sys.stdout.write(f"wrote {PINNED}\n")
