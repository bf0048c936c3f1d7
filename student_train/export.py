"""The trained student and its adapters, written for good once a run is finished."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from storage.sealed_json import seal
from student_train.checkpoint import TrainState, sync
from student_train.config import TrainConfig
from student_train.engine import Engine
from student_train.errors import TrainError, writing
from student_train.job import TrainJob
from student_train.metrics import Metrics
from student_train.output import FINISHED, adapters_file, student_folder
from student_train.zero_config import ADAPTER_PREFIX
from vlm.checkpoint import resolve_checkpoint, save_model
from vlm.errors import InputError
from vlm.finite import is_finite
from vlm.tensor_file import save_tensors
from vlm.weights import weight_files


def is_exported(output: Path) -> bool:
    """Whether student and adapters of a finished run are still there; converters move or change them in place."""
    student = student_folder(output)
    try:
        return adapters_file(output).is_file() and (student / "config.json").is_file() and bool(weight_files(student))
    except InputError:
        return False


def check_export_can_be_repeated(config: TrainConfig, state: TrainState) -> None:
    """Refuse to train a finished run again, where what is to be exported once more is not in a checkpoint.

    Raises:
        TrainError: the newest sound checkpoint is not that of the last step.
    """
    if state.step < config.num_steps:
        newest = f"the newest is of step {state.step}" if state.step else "there is none"
        raise TrainError(
            f"output {config.output}: finished, but its student or adapters are gone, and so is the checkpoint of step "
            f"{config.num_steps} to export them from ({newest}); restore them, or train into another output"
        )


def export(job: TrainJob, engine: Engine, state: TrainState, settings: dict[str, Any], last: Metrics) -> None:
    """Write student, adapters and, last of all, the mark that the run is finished; called by ALL ranks.

    Raises:
        TrainError: no step changed the student, or the last ones left weights that are not finite.
    """
    adapters = _adapters(engine)
    _check_worth(job, engine, state)
    if not engine.ranks.is_first:
        return
    output, target = job.train.output, student_folder(job.train.output)
    temporary = output / ".tmp-student"
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(output):
        save_model(engine.student.model, temporary, tokenizer_from=resolve_checkpoint(job.student))
        save_tensors(adapters, output / ".tmp-adapters")
        (output / ".tmp-finished").write_bytes(seal({**asdict(state), "settings": settings, "metrics": last}))
        for path in (*temporary.iterdir(), temporary, output / ".tmp-adapters", output / ".tmp-finished"):
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        (output / ".tmp-adapters").rename(adapters_file(output))
        (output / ".tmp-finished").rename(output / FINISHED)
        sync(output)


def _check_worth(job: TrainJob, engine: Engine, state: TrainState) -> None:
    """The same on every rank: all hold the same weights."""
    output = job.train.output
    if state.skipped_steps == state.step:
        raise TrainError(
            f"output {output}: none of {state.step} steps changed the student, because no loss or gradient was finite; "
            f"nothing is exported; check the store, lower learning_rate {job.train.learning_rate} or change dtype "
            f"{job.dtype}, and train into another output"
        )
    for name, value in engine.student.state_dict().items():
        if not is_finite(value):
            raise TrainError(
                f"output {output}: after step {state.step} {name} is not finite; nothing is exported; lower "
                f"learning_rate {job.train.learning_rate} or change dtype {job.dtype}, and train into another output"
            )


def _adapters(engine: Engine) -> dict[str, Tensor]:
    """Float32 adapters: master weights where trained, as they came otherwise."""
    weights = {name: value.float().cpu() for name, value in engine.student.adapters.state_dict().items()}
    for name, value in engine.master_weights():
        if name.startswith(ADAPTER_PREFIX):
            weights[name.removeprefix(ADAPTER_PREFIX)] = value
    return {name: value.contiguous() for name, value in weights.items()}
