"""Runs a script in the namespaces of another process: python in_node.py PID SCRIPT ARGUMENTS."""

import ctypes
import os
import runpy
import sys
from pathlib import Path

MOUNTS = 0x00020000  # CLONE_NEWNS
KINDS = {"mnt": MOUNTS, "net": 0x40000000, "uts": 0x04000000}


def enter(pid: int) -> None:
    """Move this process, which must have a single thread and be root's, to a node: its network, host name and mounts.

    It stays in its own namespace of processes, so it needs a /proc of its own.

    Raises:
        OSError: the system does not allow it.
    """
    folder = Path.cwd()
    descriptors = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in KINDS}
    for name, descriptor in descriptors.items():
        _call("setns", descriptor, KINDS[name])
        os.close(descriptor)
    _call("unshare", MOUNTS)
    _call("mount", b"proc", b"/proc", b"proc", 0, None)
    os.chdir(folder)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


if __name__ == "__main__":
    enter(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
