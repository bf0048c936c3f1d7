"""A lock ends with the process that took it, although a forked child lives on."""

import os
import signal
from pathlib import Path

from alignkd.storage.files.exclusive import Lock


def test_a_killed_holder_leaves_no_lock_to_its_forked_child(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.touch()
    told, tell = os.pipe()
    holder = os.fork()
    if not holder:
        kept = Lock.take(path)
        assert kept is not None
        if not (child := os.fork()):
            signal.pause()
        os.write(tell, f"{child}\n".encode())
        signal.pause()
    child = int(os.read(told, 32))
    try:
        assert Lock.take(path) is None  # the holder lives; its child's start has not released the lock
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        taken = Lock.take(path)
        assert taken is not None
        taken.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(told)
        os.close(tell)
