"""The settings that decide the trained weights: a resumed run must not change them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkd.storage import StoreReader
from alignkd.storage.files.checksum import file_crc32c
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import unreadable
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.attention.chosen import attention_match
from alignkd.student_train.run.checks.target_sources import stem_of_run, targets_of_stem
from alignkd.student_train.run.mixture import Mixture
from alignkd.vlm.families.family import Checkpoint

# Of `validation`. `share` decides which samples are trained on. The others decide which state is exported and when the
# run ends: a best value so far cannot be compared with values of another figure or of other samples. The samples of
# `store` and `data` are compared when a run is resumed (`validation/validation.py`), wherever they lie.
DECIDING_IN_VALIDATION = {"share", "max_samples", "figure", "patience", "min_delta", "export"}
# Locations, intervals of reports and sizes of work units: they change what is learnt by no more than rounding.
NOT_DECIDING_LOSSES = {"head_chunk_mib", "attention_chunk_mib"}
NOT_DECIDING = {
    "output",
    "epochs",  # given as `steps`
    "micro_batch",
    "token_budget",
    "global_batch",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "optimizer",
    "float32_gradients",
    "gradient_checkpointing",
    "kernels",
    "deterministic",
    "skip_limit",
    "report_to",
    "report_project",
    "adapters",
    "preset",
    "losses",
    "profile",  # given as `targets`
    "targets",
    "stem",
    "centres",  # given as its checksum
    "log_every",
    "data_workers",
    "validation",  # see DECIDING_IN_VALIDATION
    "extend",  # given as the settings of `Extension`
    "keep_each_epoch",
    "keep_every",
}


def deciding_settings(
    job: TrainJob, student: Checkpoint, readers: Sequence[StoreReader], mixture: Mixture, ranks: Ranks
) -> dict[str, Any]:
    """A flat JSON-able dict of name -> value, compared when a run is resumed and kept in its checkpoints.

    The length of `job` must be given in steps.
    """
    config = job.train
    reader = readers[0]
    decided: dict[str, Any] = {
        **_of_stores(readers, mixture),
        **ranks.on_first(lambda: starting_point(job, student)),
        "dtype": job.dtype,
        "trained": job.trained.text,
        "quantization": job.trained.quantization,
        "global_batch": config.global_batch_size(ranks.world_size),
    }
    decided |= config.model_dump(mode="json", exclude=NOT_DECIDING)
    decided |= {f"losses.{name}": value for name, value in _of_losses(reader, student, config).items()}
    if config.validation is not None:
        validation = config.validation.model_dump(mode="json", include=DECIDING_IN_VALIDATION)
        validation["figure"] = config.validation.chosen_figure
        decided |= {f"validation.{name}": value for name, value in validation.items()}
    if config.centres is not None:
        decided["centres_crc32c"] = _checksum("centres", config.centres)
    if (stem := stem_of_run(reader, config)) is not None:  # its fingerprint is the store's
        decided |= {f"targets.{name}": f"stem in {stem.dtype}" for name in targets_of_stem(reader, config)}
    return decided


def _of_losses(reader: StoreReader, student: Checkpoint, config: TrainConfig) -> dict[str, Any]:
    losses = config.losses.model_dump(mode="json", exclude=NOT_DECIDING_LOSSES)
    if losses["attention_layers"] is not None and (match := attention_match(reader, student.config, config)):
        losses["attention_layers"] = str(match)  # a band means other layers with another store
    if (taid := config.losses.taid_of_logit) is not None:
        losses["taid"] = taid.model_dump(mode="json")  # the defaults are the same whether or not they are written
    return losses


def _of_stores(readers: Sequence[StoreReader], mixture: Mixture) -> dict[str, Any]:
    """Content of each store, and what decides the order of its samples; names are in the figures by source."""
    found: dict[str, Any] = {}
    for number, (store, reader) in enumerate(zip(mixture.stores, readers, strict=True)):
        weights = mixture.settings(store.shown_name)
        own: dict[str, Any] = {
            "manifest_hash": reader.manifest.whole_hash,
            "num_records": len(reader),  # grows if unusable samples are dumped again
        }
        if set(weights) != {1.0}:
            own["weights"] = weights
        if (chosen := mixture.lists[number]) is not None:
            own["samples"] = chosen.content_hash
        if len(readers) > 1:
            own = {f"store.{number}.{name}": value for name, value in {"name": store.shown_name, **own}.items()}
        found |= own
    return found


def starting_point(job: TrainJob, student: Checkpoint) -> dict[str, Any]:
    """Content hashes of the weights that training starts from: the deciding settings that need no store.

    Raises:
        TrainError: the adapters cannot be read.
        InputError: the student does not exist.
    """
    adapters = job.train.adapters
    return {
        "student_weights": student.fingerprint,
        "adapters_crc32c": _checksum("adapters", adapters) if adapters else None,
    }


def _checksum(key: str, path: Path) -> str:
    try:
        return f"{file_crc32c(path):08x}"
    except OSError as error:
        raise unreadable(f"{key} {path}", error) from error
