"""Export of the student at any checkpoint of a run, also while the run goes on; no optimiser state is read."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

from alignkd.disk.whole_file import fsync_path, write_whole
from alignkd.storage import StoreError, StoreReader
from alignkd.student_train.checkpoints.checkpoint import (
    ADAPTERS,
    WEIGHTS,
    Checkpoint,
    all_checkpoints,
    sound_checkpoint,
    step_of,
)
from alignkd.student_train.checkpoints.export import check_worth, lora_matrices, trained_adapters, write_student
from alignkd.student_train.checkpoints.parts import Parts
from alignkd.student_train.engine.parameter_groups import ADAPTER_PREFIX
from alignkd.student_train.errors import TrainError, writing
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.output import EXPORTED, adapters_file, checkpoints_folder, lora_folder, student_folder
from alignkd.student_train.run.student import student_to_export
from alignkd.student_train.trained.lora import is_lora_parameter
from alignkd.vlm.families.family import Checkpoint as Origin

logger = logging.getLogger(__name__)
# weights of the two adapters in a checkpoint, [outputs, inputs, ...]
ADAPTER_WEIGHTS = {"heads": "adapters.attn_adapter.weight", "hidden_sizes": "adapters.proj_adapter.weight"}


@dataclass(frozen=True, kw_only=True)
class ExportedStudent:
    """What was exported: from which run and step, and where it is."""

    run: Path
    step: int
    samples_seen: int
    student: Path
    adapters: Path


def steps_of(output: Path) -> list[int]:
    """The steps of the checkpoints that are there, in order."""
    return [step_of(path) for path in all_checkpoints(checkpoints_folder(output))]


def export_checkpoint(job: TrainJob, step: int | None, folder: Path) -> ExportedStudent:
    """Write student and adapters of a checkpoint into `folder`, as the run itself would at this step.

    The store is needed only for checkpoints of earlier versions in which an adapter was not trained.

    Args:
        job: of the run; `train.output` is its folder.
        step: number of optimiser steps; None takes the newest checkpoint.

    Raises:
        TrainError: no such checkpoint, it is damaged or was removed meanwhile, it does not belong to `job`, or its
            weights are not finite.
        InputError: the student that the run started from cannot be read.
    """
    output = job.train.output
    path = _path_of(output, step)
    logger.info("%s: comparing checksums", path)
    checkpoint = _sound(output, path)
    # LoRA is merged into the original weights, also if it was trained beside quantised ones
    trained = job.trained.model_copy(update={"quantization": "none"})
    job = replace(job, dtype=checkpoint.settings["dtype"], trained=trained)
    origin = job.open_student()
    logger.info("%s: reading the checkpoint that the run started from", job.student)
    if (found := origin.fingerprint) != (expected := checkpoint.settings["student_weights"]):
        raise TrainError(
            f"student.checkpoint {job.student}: its fingerprint is {found[:16]}, the run {output} started from "
            f"{expected[:16]}; restore the checkpoint that the run started from"
        )
    with _not_removed(output, path), Parts(path, WEIGHTS) as parts:
        student = _student_before_training(job, origin, checkpoint, parts)
        _load_weights(student, parts, path)
        adapters = trained_adapters(
            student, ((name, parts.tensor(name)) for name in parts.names if name.startswith(ADAPTER_PREFIX))
        )
        lora = lora_matrices((name, parts.tensor(name)) for name in parts.names if is_lora_parameter(name))
    check_worth(job, student, checkpoint.state)
    logger.info("%s: writing", folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EXPORTED).unlink(missing_ok=True)
        shutil.rmtree(lora_folder(folder), ignore_errors=True)  # an earlier export may be of a run with LoRA
        write_student(folder, job, origin, student, adapters, lora)
        write_whole(folder / EXPORTED, _description(job, checkpoint))
        fsync_path(folder)
    return ExportedStudent(
        run=output,
        step=checkpoint.state.step,
        samples_seen=checkpoint.state.samples_seen,
        student=student_folder(folder),
        adapters=adapters_file(folder),
    )


def _path_of(output: Path, step: int | None) -> Path:
    """The checkpoint of a step, or the newest one."""
    steps = steps_of(output)
    if not steps:
        raise TrainError(f"{output}: has no checkpoint; give the output folder of a training run that has written one")
    if step is not None and step not in steps:
        raise TrainError(f"{output}: has no checkpoint of step {step}; {_choice(steps)}")
    return checkpoints_folder(output) / f"step-{steps[-1] if step is None else step:08d}"


def _choice(steps: list[int]) -> str:
    return f"there are those of steps {', '.join(map(str, steps))}" if steps else "there is none"


def _sound(output: Path, path: Path) -> Checkpoint:
    with _not_removed(output, path):
        try:
            return sound_checkpoint(path, kind=WEIGHTS)
        except (StoreError, TrainError) as error:
            if not path.is_dir():
                raise
            raise TrainError(f"{path}: damaged ({error}); choose another step; {_choice(steps_of(output))}") from error


@contextmanager
def _not_removed(output: Path, path: Path) -> Iterator[None]:
    """One line if the run, which goes on, removes the checkpoint while it is read."""
    try:
        yield
    except (StoreError, TrainError, OSError, SafetensorError, KeyError) as error:
        if path.is_dir():
            raise
        raise TrainError(
            f"{path}: was removed while it was read, because the run goes on; {_choice(steps_of(output))}; choose "
            "a newer one, or set train.keep_each_epoch or train.keep_every"
        ) from error


def _teacher_sizes(checkpoint: Checkpoint, parts: Parts, job: TrainJob) -> dict[str, int]:
    """`heads` and `hidden_sizes` of the teacher: in the checkpoint, else in its adapters, else in the store."""
    kept: dict[str, Any] | None = checkpoint.document.get(ADAPTERS)
    if kept is not None:
        return {name: int(kept[name][0]) for name in ADAPTER_WEIGHTS}
    if parts.names.issuperset(ADAPTER_WEIGHTS.values()):
        return {name: parts.tensor(weight).shape[1] for name, weight in ADAPTER_WEIGHTS.items()}
    shapes = StoreReader(job.stores[0].path).manifest.shapes
    return {"heads": shapes.num_heads, "hidden_sizes": shapes.hidden_size}


def _student_before_training(job: TrainJob, origin: Origin, checkpoint: Checkpoint, parts: Parts) -> DistilledStudent:
    """The student that the run started from; adapters of an earlier stage are read only if they were not trained."""
    if parts.names.issuperset(ADAPTER_WEIGHTS.values()):
        job = replace(job, train=job.train.model_copy(update={"adapters": None}))
    sizes, kept = _teacher_sizes(checkpoint, parts, job), checkpoint.document.get(ADAPTERS, {})
    student = student_to_export(
        job,
        origin,
        num_heads=sizes["heads"],
        hidden_size=sizes["hidden_sizes"],
        layers=kept.get("layers"),
        states=kept.get("states", False),
    )
    student.adapters.to(job.torch_dtype)  # as the engine does
    return student


def _load_weights(student: DistilledStudent, parts: Parts, path: Path) -> None:
    """Set every trained parameter to its master weight, rounded to the dtype of the run."""
    trained = {name: value for name, value in student.named_parameters() if value.requires_grad}
    if differing := sorted(trained.keys() ^ parts.names):
        raise TrainError(
            f"{path}: its weights are not those that this run trains ({differing[0]} and {len(differing) - 1} more "
            "differ); the run was started by another version or with other losses"
        )
    for name in tqdm(trained, desc=path.name, unit="tensor", disable=not sys.stderr.isatty()):
        trained[name].data.copy_(parts.tensor(name))


def _description(job: TrainJob, checkpoint: Checkpoint) -> str:
    """Content of `export.json`."""
    description = {
        "run": str(job.train.output),
        "step": checkpoint.state.step,
        "samples_seen": checkpoint.state.samples_seen,
        "settings": checkpoint.settings,
        "configuration": job.configuration,
    }
    return json.dumps(description, indent=2) + "\n"
