"""Offline distillation of vision-language models from cached targets.

The names below are all that scripts and notebooks need. Each is imported when it is first used: looking into a store
loads neither torch nor zarr. Guide with examples: docs/python.md.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkd import errors
    from alignkd.errors import AlignkdError
    from alignkd.jobs import dump_job, train_job
    from alignkd.storage.interop.float_view import float_view
    from alignkd.storage.interop.webdataset_decoder import webdataset_decoder
    from alignkd.storage.read.store import StoreReader
    from alignkd.storage.read.teacher_logprobs import DenseLogprobs, SparseLogprobs
    from alignkd.storage.record.record import Record
    from alignkd.storage.schema.manifest import Manifest
    from alignkd.storage.tools.convert import convert_store as convert
    from alignkd.storage.tools.verify.verify import verify_store as verify
    from alignkd.stores import open_store
    from alignkd.student_train.job import TrainJob, TrainResult
    from alignkd.student_train.trainer import train
    from alignkd.target_dataset import TargetDataset
    from alignkd.teacher_dump.dump import dump
    from alignkd.teacher_dump.job import DumpJob, DumpResult
    from alignkd.version import __version__

__all__ = [
    "AlignkdError",
    "DenseLogprobs",
    "DumpJob",
    "DumpResult",
    "Manifest",
    "Record",
    "SparseLogprobs",
    "StoreReader",
    "TargetDataset",
    "TrainJob",
    "TrainResult",
    "__version__",
    "convert",
    "dump",
    "dump_job",
    "errors",
    "float_view",
    "open_store",
    "train",
    "train_job",
    "verify",
    "webdataset_decoder",
]

# public name -> module, and the name there if it is another one
_HOMES = {
    "__version__": "alignkd.version",
    "AlignkdError": "alignkd.errors",
    "DenseLogprobs": "alignkd.storage.read.teacher_logprobs",
    "DumpJob": "alignkd.teacher_dump.job",
    "DumpResult": "alignkd.teacher_dump.job",
    "Manifest": "alignkd.storage.schema.manifest",
    "Record": "alignkd.storage.record.record",
    "SparseLogprobs": "alignkd.storage.read.teacher_logprobs",
    "StoreReader": "alignkd.storage.read.store",
    "TargetDataset": "alignkd.target_dataset",
    "TrainJob": "alignkd.student_train.job",
    "TrainResult": "alignkd.student_train.job",
    "convert": "alignkd.storage.tools.convert:convert_store",
    "dump": "alignkd.teacher_dump.dump",
    "dump_job": "alignkd.jobs",
    "float_view": "alignkd.storage.interop.float_view",
    "open_store": "alignkd.stores",
    "train": "alignkd.student_train.trainer",
    "train_job": "alignkd.jobs",
    "verify": "alignkd.storage.tools.verify.verify:verify_store",
    "webdataset_decoder": "alignkd.storage.interop.webdataset_decoder",
}


if (_link := Path(__file__).parent / "storage").is_file():
    raise ImportError(
        f"{_link} is a text file, expected a link to a folder; clone with `git clone -c core.symlinks=true`, or take "
        "the tar.gz archive in place of the zip archive"
    )


def __getattr__(name: str) -> Any:
    """Import a public name and keep it."""
    if name == "errors":
        value: Any = import_module("alignkd.errors")
    elif name in _HOMES:
        module, _, original = _HOMES[name].partition(":")
        value = getattr(import_module(module), original or name)
    else:
        raise AttributeError(f"module 'alignkd' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
