"""Errors that callers can catch. `AlignkdError` is the base class of all of them, and a ValueError.

Errors of the operating system (a full disk, a missing permission) are raised as OSError where no file of alignkd's own
is involved. Wrong arguments of a function are TypeError or ValueError, as in any Python library.
"""

from alignkd.disk.errors import AlignkdError
from alignkd.storage.errors import CorruptStoreError, RecordError, RemoteError, StoreError
from alignkd.student_train.errors import TrainError
from alignkd.vlm.errors import ImageError, InputError, SampleError

__all__ = [
    "AlignkdError",
    "CorruptStoreError",
    "ImageError",
    "InputError",
    "RecordError",
    "RemoteError",
    "SampleError",
    "StoreError",
    "TrainError",
]
