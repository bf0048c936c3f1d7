"""/dev/shm, where the semaphores of data workers lie; containers give it little, or share it with others."""

import os
from pathlib import Path

from alignkd.student_train.errors import TrainError

PLACE = Path("/dev/shm")
# Measured: pages of 4 KiB in use with 1, 2, 4 and 8 workers are 11, 14, 20 and 32. Batches do not lie there.
PAGES, PAGES_PER_WORKER = 8, 3


def check_shared_memory(workers: int) -> None:
    """Refuse to start data workers where their semaphores have no room.

    Raises:
        TrainError: it names needed and free bytes.
    """
    if not PLACE.is_dir():
        return
    found = os.statvfs(PLACE)
    needed = (PAGES + PAGES_PER_WORKER * workers) * os.sysconf("SC_PAGE_SIZE")
    free = found.f_bavail * found.f_frsize
    if found.f_blocks and free < needed:  # 0 blocks: without a limit
        raise TrainError(
            f"{PLACE}: {free} bytes are free, {workers} data workers need {needed}; set train.data_workers to 0, or "
            "make it larger (docker run --shm-size 64m)"
        )
