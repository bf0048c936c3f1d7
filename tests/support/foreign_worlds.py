"""A data set, a teacher, what a dump has stored of it, and the same as another tool would have scored it."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from foreign_files import Scored

from alignkd.storage import Record, StoreReader, TruncatedLogits

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
TOP_K = 12
ANY_ID = 5  # what the other tool writes at vision positions that have no id


@dataclass(frozen=True, kw_only=True)
class World:
    """A data set and its teacher.

    Attributes:
        options: of `shards import`, without the files and the store.
        samples: every sample, in the order of the data.
        top_k: a store with the `TOP_K` most probable tokens.
        vocab_size: V.
    """

    data: Path
    images: Path
    options: list[str]
    samples: list[Scored]
    top_k: Path
    vocab_size: int


def make_world(folder: Path, config: dict[str, Any], options: list[str], alignkd: Alignkd) -> World:
    """Dump twice: all logits in float32, and the most probable."""
    kinds: dict[str, dict[str, Any]] = {
        "full": {"kind": "full"},
        "top_k": {"kind": "topk", "top_k": TOP_K, "dtype": "float32"},
    }
    for name, logits in kinds.items():
        nothing = {"attention": "none", "vision_top": "none", "vision_all": "none"}
        store = {"path": str(folder / name), "shard_size": 2, **nothing, "logits": logits}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**config, "store": store}))
        done = alignkd("dump", path)
        assert done.returncode == 0, done.stderr
    data = config["data"]
    return World(
        data=Path(data["conversations"]),
        images=Path(data["images"]),
        options=["--data", data["conversations"], "--images", data["images"], *options],
        samples=scored_samples(folder / "full"),
        top_k=folder / "top_k",
        vocab_size=StoreReader(folder / "full").manifest.shapes.vocab_size,
    )


def scored_samples(full: Path) -> list[Scored]:
    """The samples of a store with full logits, in the order of the data."""
    reader, random = StoreReader(full), np.random.default_rng(0)
    columns = reader.manifest.shapes.num_tokens  # the others are padding
    return [_scored(reader[int(number)], random, columns) for number in np.argsort(reader.dataset_index)]


def _scored(record: Record, random: np.random.Generator, columns: int | None) -> Scored:
    """At supervised positions the teacher's logits, at all others any."""
    logits, ids = np.asarray(record.logits, np.float64)[:, :columns], record.input_ids.astype(np.int64)
    if (ids == -200).any():  # MobileVLM: the other tool's own ids in place of each image
        text = np.setdiff1d(np.arange(record.sequence_length), record.vision_positions)
        expanded = np.full(record.sequence_length, ANY_ID, np.int64)
        expanded[text] = ids[ids != -200]
        ids = expanded
    dense = random.normal(size=(len(ids), logits.shape[1]))
    dense[record.supervised_positions] = logits
    dense -= dense.max(1, keepdims=True)
    logprobs = dense - np.log(np.exp(dense).sum(1, keepdims=True))
    first = int(record.supervised_positions[0]) + 1
    return Scored(id=record.id, tokens=ids.tolist(), logprobs=logprobs, first_label=first)


def records(path: Path) -> dict[str, Record]:
    """The records of a store by id."""
    reader = StoreReader(path)
    return {reader.ids[number]: reader[number] for number in range(len(reader))}


def rows_of(logits: Any) -> list[dict[int, float]]:
    """Token -> log-probability of each position."""
    assert isinstance(logits, TruncatedLogits)
    return [
        dict(zip(logits.ids[start:stop].tolist(), logits.logprobs[start:stop].tolist(), strict=True))
        for start, stop in zip(logits.offsets, logits.offsets[1:], strict=False)
    ]


def assert_same_samples(imported: Path, dumped: Path) -> None:
    """The same samples with the same tokens, keys and images."""
    found, expected = records(imported), records(dumped)
    assert found.keys() == expected.keys()
    for name, record in expected.items():
        for field in ("input_ids", "labels", "supervised_positions", "vision_positions"):
            np.testing.assert_array_equal(getattr(found[name], field), getattr(record, field))
        assert found[name].key == record.key and found[name].conversations == record.conversations
        assert found[name].image_sha256 == record.image_sha256


def assert_equals_dump(imported: Path, dumped: Path) -> None:
    """The same entries, the same log-probabilities to float32, and the same tail."""
    assert_same_samples(imported, dumped)
    found = records(imported)
    for name, record in records(dumped).items():
        mine, theirs = found[name].logits, record.logits
        for row, expected in zip(rows_of(mine), rows_of(theirs), strict=True):
            assert row.keys() == expected.keys()
            np.testing.assert_allclose([row[t] for t in expected], list(expected.values()), rtol=1e-6, atol=1e-6)
        assert isinstance(mine, TruncatedLogits) and isinstance(theirs, TruncatedLogits)
        assert mine.tail_logmass is not None and theirs.tail_logmass is not None
        np.testing.assert_allclose(np.exp(mine.tail_logmass), np.exp(theirs.tail_logmass), atol=2e-6)
