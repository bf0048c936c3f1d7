"""Export: the trained student, its adapters and LoRA, written at the end of a run."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from alignkd.disk.whole_file import fsync_path, write_whole
from alignkd.storage.schema.sealed_json import seal
from alignkd.student_train.checkpoints.checkpoint import DOMAIN_WEIGHTS, TrainState
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.parameter_groups import ADAPTER_PREFIX, MODEL_PREFIX
from alignkd.student_train.errors import TrainError, writing
from alignkd.student_train.job import TrainJob, ValidationOutcome
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.output import FINISHED, adapters_file, lora_folder, student_folder
from alignkd.student_train.trained.lora import FIRST, SECOND, add_product, is_lora_parameter, lora_layers, merge
from alignkd.student_train.trained.lora_files import is_lora_complete, save_lora
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.finite import is_finite
from alignkd.vlm.weights.tensor_file import open_tensors, save_tensors


def is_exported(output: Path, student: Checkpoint, trained: TrainedConfig) -> bool:
    """Whether student, adapters and LoRA of a finished run exist and can be opened.

    Converters move them or change them in place. Only the headers of safetensors files are read, which is enough to
    notice a truncated file.

    Args:
        student: the checkpoint that the run started from.
        trained: what the run trains.
    """
    if trained.lora_settings is not None and not is_lora_complete(lora_folder(output)):
        return False
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
    domain_weights: Mapping[str, Any] | None = None,
) -> None:
    """Write adapters, LoRA, student and, last, the mark that the run is finished; called by ALL ranks.

    Args:
        engine: holds the weights that are exported.
        state: after the last step of the run, whichever step the weights are of.
        validation: kept in the mark.
        domain_weights: kept in the mark; None for weights that stay.

    Raises:
        TrainError: no step changed the student, or a weight is not finite.
    """
    # all master weights together would be as large as the student in float32
    needed = [
        (name, value)
        for name, value in engine.master_weights()
        if name.startswith(ADAPTER_PREFIX) or is_lora_parameter(name)
    ]
    adapters, lora = trained_adapters(engine.student, needed), lora_matrices(needed)
    check_worth(job, engine.student, state)
    if not engine.ranks.is_first:
        return
    output = job.train.output
    with writing(output):
        write_student(output, job, checkpoint, engine.student, adapters, lora)
        mark = {**asdict(state), "settings": settings, "metrics": last}
        if validation is not None:
            mark["validation"] = asdict(validation)
        if domain_weights is not None:
            mark[DOMAIN_WEIGHTS] = dict(domain_weights)
        # the mark comes last: student and adapters are on the disk before it
        write_whole(output / FINISHED, seal(mark))
        fsync_path(output)


def write_student(
    folder: Path,
    job: TrainJob,
    checkpoint: Checkpoint,
    student: DistilledStudent,
    adapters: Mapping[str, Tensor],
    lora: Mapping[str, Tensor],
) -> None:
    """Write student, adapters and LoRA into `folder`, each whole or not at all, flushed to the disk.

    Args:
        checkpoint: the checkpoint that the run started from, whose layout is written.
        adapters: as `trained_adapters` returns them.
        lora: as `lora_matrices` returns them; empty for a run that trains no LoRA.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    target, temporary = student_folder(folder), folder / ".tmp-student"
    shutil.rmtree(temporary, ignore_errors=True)
    _save_lora(folder, job, student.model, lora)
    checkpoint.save(_whole_student(job, checkpoint, student.model, lora), temporary)
    _sync(temporary)
    save_tensors(adapters, adapters_file(folder))
    _remove(target)
    temporary.rename(target)
    fsync_path(folder)


def lora_matrices(masters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """LoRA's matrices in float32, by their names in the student; none for a run that trains no LoRA.

    Args:
        masters: trained parameters by their names in the module that is trained.
    """
    return {name.removeprefix(MODEL_PREFIX): value for name, value in masters if is_lora_parameter(name)}


def _save_lora(folder: Path, job: TrainJob, model: VisionLanguageModel, masters: Mapping[str, Tensor]) -> None:
    """Write LoRA alone, in a folder that replaces that of an earlier export in one step."""
    if (lora := job.trained.lora_settings) is None:
        return
    temporary, target = folder / ".tmp-lora", lora_folder(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    save_lora(temporary, model, masters, lora, base=str(job.student))
    _sync(temporary)
    _remove(target)
    temporary.rename(target)


def _whole_student(
    job: TrainJob, checkpoint: Checkpoint, model: VisionLanguageModel, masters: Mapping[str, Tensor]
) -> VisionLanguageModel:
    """The student as it is saved: LoRA merged into its weights; of quantised weights, into the original ones."""
    if (lora := job.trained.lora_settings) is None:
        return model
    if job.trained.quantization == "none":
        merge(model, masters, lora.scale)
        return model
    original = checkpoint.load_model(dtype=job.torch_dtype)
    for name, value in model.named_parameters():
        if value.requires_grad and not is_lora_parameter(name):
            original.get_parameter(name).data.copy_(value.data)
    for name, _ in lora_layers(model):
        linear = original.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        add_product(linear, masters[f"{name}.{FIRST}"], masters[f"{name}.{SECOND}"], lora.scale)
    return original


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        fsync_path(path)


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
        if value.is_floating_point() and not is_finite(value):
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
