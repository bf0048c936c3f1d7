"""Export: the trained student and its adapters, written at the end of a run."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from alignkd.disk.whole_file import fsync_path, write_whole
from alignkd.storage.schema.sealed_json import seal
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.zero_config import ADAPTER_PREFIX
from alignkd.student_train.errors import TrainError, writing
from alignkd.student_train.job import TrainJob, ValidationOutcome
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.output import FINISHED, adapters_file, student_folder
from alignkd.student_train.run.checkpoint import TrainState
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.finite import is_finite
from alignkd.vlm.weights.tensor_file import open_tensors, save_tensors


def is_exported(output: Path, student: Checkpoint) -> bool:
    """Whether student and adapters of a finished run exist and can be opened.

    Converters move them or change them in place. Only the headers of safetensors files are read, which is enough to
    notice a truncated file.

    Args:
        student: the checkpoint that the run started from.
    """
    try:
        with open_tensors(adapters_file(output)):
            pass
    except (OSError, SafetensorError):
        return False
    return student.is_complete(student_folder(output))


def check_export_can_be_repeated(config: TrainConfig, state: TrainState, *, last_step: int) -> None:
    """Refuse to train a finished run again if its student is missing and no checkpoint holds its last step.

    Raises:
        TrainError: the newest sound checkpoint is not that of the last step.
    """
    if state.step < last_step:
        newest = f"the newest is of step {state.step}" if state.step else "there is none"
        raise TrainError(
            f"output {config.output}: finished, but its student or adapters are missing, and so is the checkpoint of "
            f"step {last_step} to export them from ({newest}); restore them, or train into another output"
        )


def export(
    job: TrainJob,
    checkpoint: Checkpoint,
    engine: Engine,
    state: TrainState,
    settings: dict[str, Any],
    last: Metrics,
    *,
    validation: ValidationOutcome | None = None,
) -> None:
    """Write adapters, student and, last, the mark that the run is finished; called by ALL ranks.

    Args:
        engine: holds the weights that are exported.
        state: after the last step of the run, whichever step the weights are of.
        validation: kept in the mark.

    Raises:
        TrainError: no step changed the student, or a weight is not finite.
    """
    adapters = trained_adapters(engine.student, engine.master_weights())
    check_worth(job, engine.student, state)
    if not engine.ranks.is_first:
        return
    output = job.train.output
    with writing(output):
        write_student(output, checkpoint, engine.student, adapters)
        mark = {**asdict(state), "settings": settings, "metrics": last}
        if validation is not None:
            mark["validation"] = asdict(validation)
        # the mark comes last: student and adapters are on the disk before it
        write_whole(output / FINISHED, seal(mark))
        fsync_path(output)


def write_student(
    folder: Path, checkpoint: Checkpoint, student: DistilledStudent, adapters: Mapping[str, Tensor]
) -> None:
    """Write `folder/student` and `folder/adapters.safetensors`, each whole or not at all, flushed to the disk.

    Args:
        checkpoint: the checkpoint that the run started from, whose layout is written.
        adapters: as `trained_adapters` returns them.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    target, temporary = student_folder(folder), folder / ".tmp-student"
    shutil.rmtree(temporary, ignore_errors=True)
    checkpoint.save(student.model, temporary)
    for path in (*temporary.rglob("*"), temporary):
        fsync_path(path)
    save_tensors(adapters, adapters_file(folder))
    _remove(target)
    temporary.rename(target)
    fsync_path(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, or a link to a folder without its target."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def check_worth(job: TrainJob, student: DistilledStudent, state: TrainState) -> None:
    """Refuse to export a useless student. The answer is the same on every rank: all hold the same weights.

    Raises:
        TrainError: no step changed the student, or a weight is not finite.
    """
    output = job.train.output
    if state.skipped_steps == state.step:
        raise TrainError(
            f"output {output}: none of {state.step} steps changed the student, because no loss or gradient was finite; "
            f"nothing is exported; check the store, lower learning_rate {job.train.learning_rate} or change dtype "
            f"{job.dtype}, and train into another output"
        )
    for name, value in student.state_dict().items():
        if not is_finite(value):
            raise TrainError(
                f"output {output}: after step {state.step} {name} is not finite; nothing is exported; lower "
                f"learning_rate {job.train.learning_rate} or change dtype {job.dtype}, and train into another output"
            )


def trained_adapters(student: DistilledStudent, master_weights: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The adapters in float32: master weights of those that are trained.

    Args:
        master_weights: name and float32 value of every trained parameter of the student.
    """
    weights = {name: value.float().cpu() for name, value in student.adapters.state_dict().items()}
    for name, value in master_weights:
        if name.startswith(ADAPTER_PREFIX):
            weights[name.removeprefix(ADAPTER_PREFIX)] = value
    return {name: value.contiguous() for name, value in weights.items()}
