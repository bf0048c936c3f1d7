"""Names in the output folder of a run, and in its metrics file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.schema.sealed_json import unseal
from alignkd.student_train.errors import TrainError

METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
# names in a line of VALIDATION that are not losses
# Mean of the margin and share of pairs whose margin is above 0; of runs that learn from pairs of answers.
PREFERENCE_FIGURES = ("preference_margin", "preference_accuracy")
VALIDATION_FIGURES = ("step", "samples", "unusable", "seconds", "best_step", "best", *PREFERENCE_FIGURES)
CONFIG = "run.json"  # no model has a file of this name
EARLIER_CONFIG = "config.json"  # its name in earlier versions
FINISHED = "finished.json"
EXPORTED = "export.json"  # in the folder that `alignkd train export` writes: run, step and configuration
# Names in a step's line of METRICS that are not losses; those of sample kinds start with KIND_PREFIX.
# Of the work, not of its result: they differ between two runs of the same job, or with the division into micro-batches.
TIMINGS = ("seconds", "wait_share", "tokens_per_second", "padding", "peak_memory_mib")
BY_SOURCE = "by_source"  # source -> samples, loss and terms of the step; of runs with several sources
DOMAIN_WEIGHT = "weight"  # of a source in BY_SOURCE, in runs whose weights of domains follow the student
ATTENTION_WEIGHT = "attention_weight"  # of runs in which the weight of the attention loss falls
# of runs with `losses.logit_divergence: taid`: the share of the teacher in the step, the cross-entropy that moves it
TAID_T, TAID_CROSS_ENTROPY = "taid_t", "taid_cross_entropy"
# what an objective moves from step to step; a report shows it as it is
MOVED = (ATTENTION_WEIGHT, TAID_T)
FIGURES = (
    *("step", "samples_seen", "learning_rate", "grad_norm", "skipped"),
    *(*MOVED, TAID_CROSS_ENTROPY, *PREFERENCE_FIGURES, BY_SOURCE, *TIMINGS),
)
KIND_PREFIX = "samples_"
SECTIONS = {"data", "store", "train"}


def student_folder(output: Path) -> Path:
    """Folder of the trained student, in the official checkpoint layout."""
    return output / "student"


def adapters_file(output: Path) -> Path:
    """File of the trained adapters."""
    return output / "adapters.safetensors"


def checkpoints_folder(output: Path) -> Path:
    """Folder of a run's checkpoints."""
    return output / "checkpoints"


def lora_folder(output: Path) -> Path:
    """Folder of the trained LoRA in the layout of peft; only runs that train LoRA have it."""
    return output / "lora"


def attention_of_layer(layer: int) -> str:
    """Name of the attention loss of one layer of the student, in runs that compare several."""
    return f"attention_{layer}"


def loss_names(line: Mapping[str, Any]) -> list[str]:
    """The losses of a step's line of METRICS: `loss`, their weighted sum, every term, and attention by layer."""
    return [name for name in line if name not in FIGURES and not name.startswith(KIND_PREFIX)]


def validation_loss_names(line: Mapping[str, Any]) -> list[str]:
    """The losses of a line of VALIDATION: `loss`, their weighted sum, and every term."""
    return [name for name in line if name not in VALIDATION_FIGURES]


def read_finished(output: Path) -> dict[str, Any] | None:
    """State, deciding settings and last metrics of a finished run; None for any other run.

    Raises:
        TrainError: the file is damaged.
    """
    if not (output / FINISHED).exists():
        return None
    try:
        return unseal(output / FINISHED)
    except CorruptStoreError as error:
        raise TrainError(
            f"{output / FINISHED}: damaged ({error}); remove it and run the same command again, which exports the "
            "student from the last checkpoint"
        ) from error


def read_configuration(output: Path) -> dict[str, Any] | None:
    """The resolved configuration of a run, also of an earlier version; None if there is none."""
    for name in (CONFIG, EARLIER_CONFIG):
        document = _read_json(output / name)
        if document.keys() >= SECTIONS:  # a model's config.json has none of these keys
            return _in_present_keys(document)
    return None


def read_exported(folder: Path) -> dict[str, Any] | None:
    """`export.json` of a folder that `alignkd train export` wrote; None for any other folder."""
    document = _read_json(folder / EXPORTED)
    if not document.keys() >= {"run", "step", "configuration"}:
        return None
    configuration = document["configuration"]
    return document if configuration is None else {**document, "configuration": _in_present_keys(configuration)}


def _in_present_keys(configuration: dict[str, Any]) -> dict[str, Any]:
    """`train.optimizer` and `train.report_to` in place of what earlier versions had for them."""
    if not isinstance(train := configuration.get("train"), dict):
        return configuration
    earlier = {name: train[name] for name in ("offload_optimizer", "tensorboard") if name in train}
    if not earlier:
        return configuration
    now: dict[str, Any] = {}
    if "offload_optimizer" in earlier:
        now["optimizer"] = "adamw_offload" if earlier["offload_optimizer"] else "adamw"
    if "tensorboard" in earlier:
        now["report_to"] = ["tensorboard"] if earlier["tensorboard"] else []
    others = {name: value for name, value in train.items() if name not in earlier}
    return {**configuration, "train": {**now, **others}}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} if there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
