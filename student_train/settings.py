"""The settings that decide a run's weights: what a resumed run must not change."""

from pathlib import Path
from typing import Any

from storage import StoreReader
from storage.checksum import file_crc32c
from student_train.errors import TrainError
from student_train.job import TrainJob
from student_train.ranks import Ranks
from vlm.checkpoint import weights_fingerprint

# Where things are, how often to report and how a global batch is cut up: none of it changes what is learnt.
UNDECISIVE = {
    "output",
    "micro_batch",
    "global_batch",
    "checkpoint_every",
    "keep_checkpoints",
    "offload_optimizer",
    "adapters",
    "preset",
    "losses",
    "log_every",
    "data_workers",
}


def deciding_settings(job: TrainJob, reader: StoreReader, ranks: Ranks) -> dict[str, Any]:
    """Flat name -> value, JSON-able; compared when a run is resumed and kept in its checkpoints."""
    config = job.train
    decided: dict[str, Any] = {
        "manifest_hash": reader.manifest.manifest_hash(),
        "student_weights": ranks.from_first(weights_fingerprint(job.student) if ranks.is_first else None),
        "dtype": job.dtype,
        "global_batch": config.global_batch_size(ranks.world_size),
        "adapters_crc32c": _checksum(config.adapters) if config.adapters else None,
    }
    decided |= config.model_dump(mode="json", exclude=UNDECISIVE)
    return decided | {f"losses.{name}": value for name, value in config.losses.model_dump().items()}


def _checksum(adapters: Path) -> str:
    try:
        return f"{file_crc32c(adapters):08x}"
    except OSError as error:
        raise TrainError(
            f"adapters {adapters}: cannot be read ({error.strerror}); give a safetensors file, or leave adapters out"
        ) from error
