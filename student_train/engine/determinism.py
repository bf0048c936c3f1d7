"""`train.deterministic`: the same bits in every run on one kind of device, at the price of slower operations.

On CUDA several operations add numbers in the order in which threads arrive: backward passes of attention, sums by
index. torch has slower forms of most of them, which keep one order, and refuses the others.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alignkd.student_train.errors import TrainError

# cuBLAS reads it when it starts. With other workspaces its products may differ from run to run.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
REFUSED = " does not have a deterministic implementation"


@contextmanager
def repeatable(wanted: bool, device_type: str) -> Iterator[None]:
    """If `wanted`, torch computes inside the block with operations that repeat to the bit, and refuses all others.

    On CUDA the environment variable CUBLAS_WORKSPACE_CONFIG is set, and stays set. Call it before CUDA starts.

    Raises:
        TrainError: CUBLAS_WORKSPACE_CONFIG has another value, or CUDA has started without it; or an operation inside
            the block cannot repeat.
    """
    if not wanted:
        yield
        return
    if device_type == "cuda":
        _fix_workspace()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(REFUSED)
        if not refused:
            raise
        raise TrainError(
            f"train.deterministic is true, but torch has no form of {operation.split()[-1]} on {device_type} that "
            "repeats to the bit; set train.deterministic to false, or choose another student"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check_workspaces() -> None:
    """Refuse a value of CUBLAS_WORKSPACE_CONFIG with which products may differ from run to run.

    Raises:
        TrainError: it has such a value.
    """
    found = os.environ.get(WORKSPACE)
    if found not in (None, *FIXED_WORKSPACES):
        raise TrainError(
            f"train.deterministic is true, but {WORKSPACE} is {found!r}, expected {' or '.join(FIXED_WORKSPACES)}; "
            f"unset it, or set it to {FIXED_WORKSPACES[0]}"
        )


def _fix_workspace() -> None:
    check_workspaces()
    if WORKSPACE in os.environ:
        return
    wanted = FIXED_WORKSPACES[0]
    if torch.cuda.is_initialized():
        raise TrainError(
            f"train.deterministic is true, but this process has used CUDA without {WORKSPACE}; start it with "
            f"{WORKSPACE}={wanted}, or train in a process of its own"
        )
    os.environ[WORKSPACE] = wanted
