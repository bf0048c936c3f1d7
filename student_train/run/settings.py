"""The settings that decide the trained weights: a resumed run must not change them."""

from pathlib import Path
from typing import Any

from alignkd.storage import StoreReader
from alignkd.storage.files.checksum import file_crc32c
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import unreadable
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.target_sources import stem_of_run, targets_of_stem
from alignkd.vlm.families.family import Checkpoint

# Locations, intervals of reports and sizes of work units: they change what is learnt by no more than rounding.
NOT_DECIDING_LOSSES = {"head_chunk_mib", "attention_chunk_mib"}
NOT_DECIDING = {
    "output",
    "epochs",  # given as `steps`
    "micro_batch",
    "global_batch",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "offload_optimizer",
    "float32_gradients",
    "gradient_checkpointing",
    "skip_limit",
    "tensorboard",
    "adapters",
    "preset",
    "losses",
    "profile",  # given as `targets`
    "targets",
    "stem",
    "log_every",
    "data_workers",
}


def deciding_settings(job: TrainJob, student: Checkpoint, reader: StoreReader, ranks: Ranks) -> dict[str, Any]:
    """A flat JSON-able dict of name -> value, compared when a run is resumed and kept in its checkpoints.

    The length of `job` must be given in steps.
    """
    config = job.train
    decided: dict[str, Any] = {
        "manifest_hash": reader.manifest.manifest_hash(),
        "num_records": len(reader),  # grows if unusable samples are dumped again
        **ranks.from_first(starting_point(job, student) if ranks.is_first else None),
        "dtype": job.dtype,
        "trained": job.trained.text,
        "quantization": job.trained.quantization,
        "global_batch": config.global_batch_size(ranks.world_size),
    }
    decided |= config.model_dump(mode="json", exclude=NOT_DECIDING)
    losses = config.losses.model_dump(exclude=NOT_DECIDING_LOSSES)
    decided |= {f"losses.{name}": value for name, value in losses.items()}
    if (stem := stem_of_run(reader, config)) is not None:  # its fingerprint is the store's
        decided |= {f"targets.{name}": f"stem in {stem.dtype}" for name in targets_of_stem(reader, config)}
    return decided


def starting_point(job: TrainJob, student: Checkpoint) -> dict[str, Any]:
    """Content hashes of the weights that training starts from: the deciding settings that need no store.

    Raises:
        TrainError: the adapters cannot be read.
        InputError: the student does not exist.
    """
    adapters = job.train.adapters
    return {
        "student_weights": student.fingerprint,
        "adapters_crc32c": _checksum(adapters) if adapters else None,
    }


def _checksum(adapters: Path) -> str:
    try:
        return f"{file_crc32c(adapters):08x}"
    except OSError as error:
        raise unreadable(f"adapters {adapters}", error) from error
