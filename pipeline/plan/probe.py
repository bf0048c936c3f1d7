"""Measures instead of assuming: runs a short dump of the configuration into a temporary folder."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import torch

from alignkd.disk.temporary import temporary_folder
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.disk.entries import mean_entries
from alignkd.storage import StoreReader
from alignkd.storage.schema.plan import planned_shards
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.vlm.data.data_list import DataList
from alignkd.vlm.data.source import DataSet


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The measurements of a short dump.

    Attributes:
        device: device on which it ran.
        samples: number of samples written; unusable ones are not counted.
        samples_per_second, tokens_per_second: rates from the start of the first shard to the last written batch,
            without loading the model.
        store_bytes_per_sample: bytes of the shards per sample.
        entries_per_position: kept tokens per supervised position; None if no list of tokens is kept.
        device_memory_bytes: largest number of bytes that torch had allocated; None on a CPU.
    """

    device: str
    samples: int
    samples_per_second: float
    tokens_per_second: float
    store_bytes_per_sample: float
    entries_per_position: float | None
    device_memory_bytes: int | None


def run_probe(config: RunConfig, num_samples: int) -> Probe:
    """Dump the first samples of the shard plan into a temporary folder and measure.

    Raises:
        InputError: unusable data or checkpoint, or no usable sample.
    """
    assert config.teacher is not None
    device = config.teacher.torch_device
    ended: list[float] = []
    control = DumpControl(progress=lambda status: ended.append(time.monotonic()))
    with temporary_folder("alignkd-probe-") as folder:
        data = _some_samples(config, num_samples, folder)
        store = config.store.model_copy(update={"path": folder / "store", "max_errors": None})
        teacher = config.teacher.model_copy(update={"sanity": "off"})
        job = replace(config.dump_job(), data=(data,), store=store, teacher=teacher, control=control)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        dump(job)
        reader = StoreReader(folder / "store")
        size = sum(file.stat().st_size for file in (folder / "store" / "shards").rglob("*") if file.is_file())
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


def _some_samples(config: RunConfig, count: int, folder: Path) -> DataSet:
    """The first samples of the shard plan as a data set of their own, below `folder`.

    Images are links to the files of their data sets, or files if the data hold them.
    """
    samples = DataList(config.data_sets)
    store, images = config.store, folder / "images"
    plan = planned_shards(len(samples), store.shard_size, store.seed, contiguous=samples.is_sequential)
    entries = []
    for index in np.concatenate(plan)[:count].tolist():
        sample = samples[index]
        if sample.problem is None:
            names = [f"{index}/{place}/{image}" for place, image in enumerate(sample.images)]
            for name, image, content in zip(names, sample.images, sample.contents or (None,) * len(names), strict=True):
                _put_image(images / name, sample.folder, image, content)
            entries.append({"id": sample.id, "image": names, "conversations": sample.conversations()})
    path = folder / "probe.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return DataSet(path=path, images=images)


def _put_image(place: Path, folder: Path | None, image: str, content: bytes | None) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        place.write_bytes(content)
    elif folder is not None and not PurePath(image).is_absolute() and ".." not in PurePath(image).parts:
        place.symlink_to((folder / image).absolute())
