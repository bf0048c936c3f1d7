"""The trained student and its adapters, written for good once a run is finished."""

import shutil
from dataclasses import asdict
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from storage.sealed_json import seal
from student_train.checkpoint import TrainState, sync
from student_train.engine import Engine
from student_train.errors import writing
from student_train.job import TrainJob
from student_train.metrics import Metrics
from student_train.output import FINISHED, adapters_file, student_folder
from student_train.zero_config import ADAPTER_PREFIX
from vlm.checkpoint import resolve_checkpoint, save_model


def export(job: TrainJob, engine: Engine, state: TrainState, settings: dict[str, Any], last: Metrics) -> None:
    """Write student, adapters and, last of all, the mark that the run is finished; called by ALL ranks."""
    adapters = _adapters(engine)
    if not engine.ranks.is_first:
        return
    output, target = job.train.output, student_folder(job.train.output)
    temporary = output / ".tmp-student"
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(output):
        save_model(engine.student.model, temporary, tokenizer_from=resolve_checkpoint(job.student))
        save_file(adapters, output / ".tmp-adapters")
        (output / ".tmp-finished").write_bytes(seal({**asdict(state), "settings": settings, "metrics": last}))
        for path in (*temporary.iterdir(), temporary, output / ".tmp-adapters", output / ".tmp-finished"):
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        (output / ".tmp-adapters").rename(adapters_file(output))
        (output / ".tmp-finished").rename(output / FINISHED)
        sync(output)


def _adapters(engine: Engine) -> dict[str, Tensor]:
    """Float32 adapters: master weights where trained, as they came otherwise."""
    weights = {name: value.float().cpu() for name, value in engine.student.adapters.state_dict().items()}
    for name, value in engine.master_weights():
        if name.startswith(ADAPTER_PREFIX):
            weights[name.removeprefix(ADAPTER_PREFIX)] = value
    return {name: value.contiguous() for name, value in weights.items()}
