"""Whatever decides the targets may not change under a store: refused with both values, the store as it was."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignkd.storage import StoreError
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint

MakeJob = Callable[..., DumpJob]


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def other_checkpoint(job: DumpJob, folder: Path) -> tuple[DumpJob, str]:
    """One number of one weight is another."""
    shutil.copytree(job.teacher.checkpoint, folder)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["lm_head.weight"][0, 0] += 1
    torch.save(state, folder / "pytorch_model.bin")
    found, asked = (
        MobileVLMCheckpoint.open(job.teacher.checkpoint).fingerprint,
        MobileVLMCheckpoint.open(folder).fingerprint,
    )
    teacher = job.teacher.model_copy(update={"checkpoint": str(folder)})
    return replace(job, teacher=teacher), f"fingerprint.weights is {found} in the store, {asked} asked for"


def other_data(job: DumpJob, folder: Path) -> tuple[DumpJob, str]:
    """The same samples in another order."""
    folder.mkdir()
    path = folder / "data.json"
    path.write_text(json.dumps(json.loads(job.data[0].path.read_text())[::-1]))
    return replace(job, data=(replace(job.data[0], path=path),)), "was made from other data: data.json of data set"


def other_template(job: DumpJob, folder: Path) -> tuple[DumpJob, str]:
    return replace(job, template="plain"), "fingerprint.template is v1:1 in the store, plain:1 asked for"


def other_codec(job: DumpJob, folder: Path) -> tuple[DumpJob, str]:
    store = job.store.model_copy(update={"vision_all": "int8_channel"})
    return replace(job, store=store), "codecs.vision_all is float32 in the store, int8_channel asked for"


def other_precision(job: DumpJob, folder: Path) -> tuple[DumpJob, str]:
    teacher = job.teacher.model_copy(update={"dtype": "bfloat16"})
    return replace(job, teacher=teacher), "fingerprint.dtype is float32 in the store, bfloat16 asked for"


def other_limit(job: DumpJob, folder: Path) -> tuple[DumpJob, str]:
    return replace(job, max_tokens=512), "data_fingerprint.max_tokens is 2048 in the store, 512 asked for"


CHANGES = [other_checkpoint, other_data, other_template, other_codec, other_precision, other_limit]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_a_change_is_refused_with_both_values(
    make_job: MakeJob, tmp_path: Path, change: Callable[[DumpJob, Path], tuple[DumpJob, str]], finished: bool
) -> None:
    job = make_job(sanity="off")
    dump(job)
    store = job.store.path
    assert isinstance(store, Path)
    if not finished:
        (store / "commits" / "00000001.json").unlink()
    before = tree(store)
    changed, part = change(job, tmp_path / "other")
    with pytest.raises(StoreError) as refused:
        dump(changed)
    message = str(refused.value)
    assert part in message and " in the store, " in message and "choose another path" in message
    assert "\n" not in message and tree(store) == before
