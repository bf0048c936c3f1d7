"""Machines that are namespaces of Linux: each has its own network, host name, /etc/hosts, /dev/shm and local disk.

They share the file system, the processor and the kernel's locks. A bridge joins them, as a switch would. Nothing is
left behind: the namespaces end with their last process, and the kernel ends all processes in them when this one ends,
however that happens, because the first of them waits for the end of a pipe from here. Only kill -9 leaves a small
temporary folder.

It needs util-linux (`unshare`, `nsenter`) and iproute2 (`ip`), and root or user namespaces for everyone. No address
outside of the namespaces can be reached from them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

NETWORK = "10.77.0"
TOOLS = ("unshare", "nsenter", "ip")
# The first process of the cluster, and of each machine: ready when it prints a line, ended by the end of its input.
CLUSTER = "ip link set lo up && ip link add bridge0 type bridge && ip link set bridge0 up && echo ready && exec cat"
MACHINE = """
hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs none "$3" && mount -t tmpfs none /dev/shm &&
ip link set lo up && echo ready && exec cat
"""
TICK_SECONDS = 0.05


class NoNamespacesError(RuntimeError):
    """This machine does not let this user make the namespaces; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine.

    Attributes:
        name: its host name.
        address: its address; other machines know it by `name`, too.
        local: a folder that is another one on every machine, as a local disk is.
        pid: of a process in its namespaces.
    """

    name: str
    address: str
    local: Path
    pid: int

    def start(self, command: Sequence[object], *, folder: Path, log: IO[bytes], **environment: str) -> "Remote":
        """Start a command there; stdout and stderr go to `log`."""
        chdir = ["env", f"--chdir={folder}"]
        entered = _entering(self.pid, "net", "uts", "mount", "pid")
        process = subprocess.Popen(
            [*entered, *chdir, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
        return Remote(process)

    def rank(self, number: int) -> int | None:
        """The process of this rank on this machine; None if there is none."""
        network = _network(self.pid)
        of_rank = [pid for pid in _processes() if _environment(pid).get("RANK") == str(number)]
        # data workers have the environment of the rank that forked them
        return min((pid for pid in of_rank if _network(pid) == network), default=None)


class Remote:
    """A command that runs on a node."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._entering = process

    @property
    def pid(self) -> int | None:
        """Its process id; None before it has begun and after it has ended."""
        return _child_of(self._entering.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the command itself."""
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._entering.poll()

    def wait(self, seconds: float) -> int:
        """Its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        return self._entering.wait(seconds)

    def kill(self) -> None:
        """End it at once; its own processes may go on until the cluster ends."""
        self.signal(signal.SIGKILL)
        self._entering.kill()
        self._entering.wait()


class Cluster:
    """Machines that run while the block is entered.

    Args:
        names: host name of each machine.
        own_name_is_loopback: each machine finds its own name at 127.0.1.1, as installers of Debian write /etc/hosts.

    Raises:
        NoNamespacesError: when it is entered.
    """

    def __init__(self, *names: str, own_name_is_loopback: bool = False) -> None:
        self._names, self._loopback = names, own_name_is_loopback
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise NoNamespacesError(f"{', '.join(missing)} not found; install util-linux and iproute2")
        if sys.platform != "linux":
            raise NoNamespacesError("namespaces are Linux's")
        self._folder = Path(tempfile.mkdtemp(prefix="nodes-"))
        (self._folder / "local").mkdir()
        try:
            own_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
            unshare = ["unshare", *own_user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            root = self._first_process([*unshare, "sh", "-c", CLUSTER])
            found = _child_of(root.pid)
            assert found is not None
            self._root = found
            self.nodes = tuple(self._node(number, name) for number, name in enumerate(self._names, 1))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._started):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.stdout.close()
            process.wait()
        self._started.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def cut(self, node: Node) -> None:
        """Cut the link of a machine at the switch: its own port stays up, and its packets are lost without a word."""
        self._ip("link", "set", self._port(node), "nomaster")

    def mend(self, node: Node) -> None:
        """Connect the machine again."""
        self._ip("link", "set", self._port(node), "master", "bridge0")

    def _node(self, number: int, name: str) -> Node:
        hosts, local, address = self._folder / f"hosts-{number}", self._folder / "local", f"{NETWORK}.{number}"
        hosts.write_text(self._hosts(number))
        machine = ["sh", "-c", MACHINE, "sh", name, str(hosts), str(local)]
        entered = _entering(self._root, "net", "mount", "pid")
        first = self._first_process([*entered, "unshare", "--net", "--uts", "--mount", *machine])
        pid = _child_of(first.pid)
        assert pid is not None
        node = Node(name=name, address=address, local=local, pid=pid)
        self._ip("link", "add", self._port(node), "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._ip("link", "set", self._port(node), "master", "bridge0", "up")
        _checked([*_entering(pid, "net"), "ip", "address", "add", f"{address}/24", "dev", "eth0"])
        _checked([*_entering(pid, "net"), "ip", "link", "set", "eth0", "up"])
        return node

    def _hosts(self, own: int) -> str:
        lines = ["127.0.0.1 localhost"]
        for number, name in enumerate(self._names, 1):
            address = "127.0.1.1" if self._loopback and number == own else f"{NETWORK}.{number}"
            lines.append(f"{address} {name}")
        return "\n".join(lines) + "\n"

    def _port(self, node: Node) -> str:
        return f"port{node.address.rpartition('.')[2]}"

    def _ip(self, *arguments: str) -> None:
        _checked([*_entering(self._root, "net"), "ip", *arguments])

    def _first_process(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        # of its own session: Ctrl-C of the terminal ends this process, which then ends the cluster
        process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "ready\n":
            process.kill()
            raise NoNamespacesError(f"`{' '.join(command[:4])} ...` failed: {' '.join(process.stderr.read().split())}")
        self._started.append(process)
        return process


def why_not() -> str | None:
    """Why this machine cannot have a cluster; None if it can."""
    try:
        with Cluster("node-1"):
            return None
    except (NoNamespacesError, subprocess.CalledProcessError, OSError) as error:
        return str(error)


def wait_until(condition: object, what: str, *, seconds: float) -> None:
    """Call `condition` until it is true.

    Raises:
        TimeoutError: it did not become true; the message has `what`.
    """
    assert callable(condition)
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(TICK_SECONDS)


def _entering(pid: int, *kinds: str) -> list[str]:
    """The beginning of a command that runs in namespaces of a process."""
    own_user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    return ["nsenter", "--target", str(pid), *own_user, *(f"--{kind}" for kind in kinds), "--"]


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespacesError(f"`{' '.join(command)}` failed: {' '.join(done.stderr.split())}")


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _environment(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return {}
    return dict(entry.decode(errors="replace").split("=", 1) for entry in entries if b"=" in entry)


def _network(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def _child_of(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None
