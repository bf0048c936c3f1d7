"""/dev/shm, which holds the semaphores of data workers; in containers it is often small or shared."""

import os
from pathlib import Path

from alignkd.student_train.errors import TrainError

PLACE = Path("/dev/shm")
# Measured: 1, 2, 4 and 8 workers use 11, 14, 20 and 32 pages of 4 KiB. Batches are not stored there.
PAGES, PAGES_PER_WORKER = 8, 3


def check_shared_memory(workers: int) -> None:
    """Refuse to start data workers if /dev/shm has too little space for their semaphores.

    Raises:
        TrainError: the message names needed and free bytes.
    """
    if not PLACE.is_dir():
        return
    found = os.statvfs(PLACE)
    needed = (PAGES + PAGES_PER_WORKER * workers) * os.sysconf("SC_PAGE_SIZE")
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # 0 blocks: no limit
        raise TrainError(
            f"{PLACE}: {free} bytes are free, {workers} data workers need {needed}; set train.data_workers to 0, or "
            "make it larger (docker run --shm-size 64m)"
        )
