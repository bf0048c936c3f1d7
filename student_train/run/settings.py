"""The settings that decide a run's weights: what a resumed run must not change."""

from pathlib import Path
from typing import Any

from alignkd.storage import StoreReader
from alignkd.storage.files.checksum import file_crc32c
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import unreadable
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.target_sources import stem_of_run, targets_of_stem
from alignkd.vlm.weights.checkpoint import weights_fingerprint

# Where things are, how often to report and how the work is cut up: none of it changes what is learnt, but for rounding.
UNDECISIVE_OF_LOSSES = {"head_chunk_mib", "attention_chunk_mib"}
UNDECISIVE = {
    "output",
    "epochs",  # `steps` says it
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
    "profile",  # `targets` says it
    "targets",
    "stem",
    "log_every",
    "data_workers",
}


def deciding_settings(job: TrainJob, reader: StoreReader, ranks: Ranks) -> dict[str, Any]:
    """Flat name -> value, JSON-able; compared when a run is resumed and kept in its checkpoints.

    The job's length is given in steps.
    """
    config = job.train
    decided: dict[str, Any] = {
        "manifest_hash": reader.manifest.manifest_hash(),
        "num_records": len(reader),  # shards may have been done again, with samples that were unusable before
        **ranks.from_first(starting_point(job) if ranks.is_first else None),
        "dtype": job.dtype,
        "global_batch": config.global_batch_size(ranks.world_size),
    }
    decided |= config.model_dump(mode="json", exclude=UNDECISIVE)
    losses = config.losses.model_dump(exclude=UNDECISIVE_OF_LOSSES)
    decided |= {f"losses.{name}": value for name, value in losses.items()}
    if (stem := stem_of_run(reader, config)) is not None:  # its fingerprint is the store's
        decided |= {f"targets.{name}": f"stem in {stem.dtype}" for name in targets_of_stem(reader, config)}
    return decided


def starting_point(job: TrainJob) -> dict[str, Any]:
    """What training starts from, by content: the part of the deciding settings that needs no store.

    Raises:
        TrainError: the adapters cannot be read.
        InputError: there is no such student.
    """
    adapters = job.train.adapters
    return {
        "student_weights": weights_fingerprint(job.student),
        "adapters_crc32c": _checksum(adapters) if adapters else None,
    }


def _checksum(adapters: Path) -> str:
    try:
        return f"{file_crc32c(adapters):08x}"
    except OSError as error:
        raise unreadable(f"adapters {adapters}", error) from error
