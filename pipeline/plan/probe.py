"""Measuring instead of assuming: a short dump of the real thing into a temporary folder, and a look into a store."""

import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.storage import Record, SampledLogits, StoreError, StoreReader, TruncatedLogits
from alignkd.storage.schema.order import shard_plan
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.vlm.data.conversations import ConversationFile
from alignkd.vlm.errors import InputError

RECORDS_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a short dump showed.

    Attributes:
        device: where it ran.
        samples: written, beside those that were unusable.
        samples_per_second, tokens_per_second: from the first shard's begin to the last written batch, without loading.
        store_bytes_per_sample: of the shards.
        entries_per_position: kept tokens per supervised position; None where none are kept.
        device_memory_bytes: most that torch had allocated; None on a CPU.
    """

    device: str
    samples: int
    samples_per_second: float
    tokens_per_second: float
    store_bytes_per_sample: float
    entries_per_position: float | None
    device_memory_bytes: int | None


def run_probe(config: RunConfig, num_samples: int) -> Probe:
    """Dump the first samples of the plan into a temporary folder, and measure.

    Raises:
        InputError: unusable data or checkpoint, or none of the samples is usable.
    """
    assert config.teacher is not None
    device = config.teacher.torch_device
    ended: list[float] = []
    control = DumpControl(progress=lambda status: ended.append(time.monotonic()))
    # a dump that is cut off may still write a moment longer
    with tempfile.TemporaryDirectory(prefix="alignkd-probe-", ignore_cleanup_errors=True) as folder:
        data = _some_samples(config, num_samples, Path(folder) / "probe.jsonl")
        store = config.store.model_copy(update={"path": Path(folder) / "store", "max_errors": None})
        teacher = config.teacher.model_copy(update={"sanity": "off"})
        job = replace(config.dump_job(), conversations=data, store=store, teacher=teacher, control=control)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        dump(job)
        reader = StoreReader(Path(folder) / "store")
        size = sum(file.stat().st_size for file in (Path(folder) / "store" / "shards").rglob("*") if file.is_file())
        seconds = max(ended[-1] - control.began, 1e-9)
        return Probe(
            device=str(device),
            samples=len(reader),
            samples_per_second=control.status.samples / seconds,
            tokens_per_second=control.status.tokens / seconds,
            store_bytes_per_sample=size / len(reader),
            entries_per_position=mean_entries(reader),
            device_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        )


def entries_in_store(config: StoreConfig) -> float | None:
    """Kept tokens per supervised position of a store that is there with the same kind of logits, else None."""
    try:
        reader = StoreReader(config.path, allow_incomplete=True)
    except StoreError:
        return None
    if not len(reader) or reader.manifest.codecs.logits != config.logits:
        return None
    return mean_entries(reader)


def mean_entries(reader: StoreReader) -> float | None:
    """Kept tokens per supervised position over some records of a store; None where none are kept one by one."""
    numbers = np.unique(np.linspace(0, len(reader) - 1, RECORDS_LOOKED_AT).astype(int))
    counts = [found for number in numbers if (found := _entries(reader[int(number)])) is not None]
    positions = sum(count for count, _ in counts)
    return sum(entries for _, entries in counts) / positions if positions else None


def _entries(record: Record) -> tuple[int, int] | None:
    """Positions and entries of a record."""
    logits = record.logits
    if not isinstance(logits, TruncatedLogits | SampledLogits):
        return None
    return len(logits.offsets) - 1, int(logits.offsets[-1])


def _some_samples(config: RunConfig, count: int, path: Path) -> Path:
    """The first samples of the plan as a data set of their own."""
    samples = ConversationFile(config.data.conversations)
    if not len(samples):
        raise InputError(f"{config.data.conversations}: no conversations in it; give a file with at least one")
    order = np.concatenate(shard_plan(len(samples), config.store.shard_size, config.store.seed))[:count]
    entries = []
    for index in order:
        sample = samples[int(index)]
        if sample.problem is None:
            entries.append({"id": sample.id, "image": sample.images, "conversations": sample.conversations()})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path
