"""Processes that have the heavy imports behind them: one process imports torch and the rest once, and forks them.

The one that forks has a single thread and does nothing else, so that its children are as good as fresh ones: they have
their own signals, streams and environment, run a script as `python SCRIPT ARGUMENTS` does, and end as an interpreter
ends, except that one without an error does not free its objects one by one. What is about the start of a process itself
(its imports, its encoding, its memory), or about what is freed last, takes a real start.
"""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LONGEST_REQUEST = 1 << 18  # bytes: arguments and environment
TICK_SECONDS = 0.01


class PreparedProcess:
    """What `subprocess.Popen` would be for it, with the output kept in files."""

    def __init__(
        self, server: socket.socket, arguments: list[str], environment: dict[str, str], *, new_session: bool
    ) -> None:
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._status, theirs = socket.socketpair()
        self.returncode: int | None = None
        request = {
            "arguments": arguments, "environment": environment, "cwd": str(Path.cwd()), "new_session": new_session,
        }  # fmt: skip
        with theirs:
            fds = [self._output.fileno(), self._errors.fileno(), theirs.fileno()]
            socket.send_fds(server, [json.dumps(request).encode()], fds)
        self.pid = int(self._line())

    def poll(self) -> int | None:
        """Its exit code once it has ended, the negative number of the signal that ended it, or None."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if selector.select(0):
                    self.returncode = int(self._line())
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code; subprocess.TimeoutExpired if it does not end."""
        limit = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(TICK_SECONDS)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """All of stdout and stderr once it has ended."""
        self.wait(timeout)
        return self.output(), self.errors()

    def output(self) -> str:
        """What it has written to stdout so far."""
        return _content(self._output.fileno())

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return _content(self._errors.fileno())

    def send_signal(self, number: int) -> None:
        """As `subprocess.Popen`: nothing happens if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if not (more := self._status.recv(1)):
                raise RuntimeError("the process that forks has ended")
            line += more
        return line.decode()


class PreparedProcesses:
    """Starts them; a context manager.

    Args:
        modules: what is imported beforehand.
    """

    def __init__(self, modules: list[str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # one thread, before the fork and after it
            )

    def __enter__(self) -> "PreparedProcesses":
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._server.wait()

    def start(self, *arguments: object, new_session: bool = False, **environment: str) -> PreparedProcess:
        """`python ARGUMENTS` (SCRIPT, -m MODULE or -c CODE first) with this process's environment and `environment`."""
        given = list(map(str, arguments))
        return PreparedProcess(self._socket, given, {**os.environ, **environment}, new_session=new_session)


def _content(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()


def _serve(server: socket.socket) -> list[str] | None:
    """Forks at each request; in the child its arguments, in this process None at the end."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the child
    with selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not server:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    child, status = running.pop(key.fd)
                    with status:
                        _tell(status, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                    continue
                message, fds, _, _ = socket.recv_fds(server, LONGEST_REQUEST, 3)
                if not message:
                    return None
                request, (output, errors, descriptor) = json.loads(message), fds
                status = socket.socket(fileno=descriptor)
                if (child := os.fork()) == 0:
                    for other in (server, status, *(each for _, each in running.values())):
                        other.close()
                    for number in running:
                        os.close(number)
                    _become(request, output, errors)
                    return list(request["arguments"])
                os.close(output)
                os.close(errors)
                _tell(status, child)
                number = os.pidfd_open(child)
                running[number] = (child, status)
                selector.register(number, selectors.EVENT_READ)


def _tell(status: socket.socket, number: int) -> None:
    with suppress(OSError):  # nobody asks any more
        status.sendall(f"{number}\n".encode())


def _become(request: dict[str, Any], output: int, errors: int) -> None:
    if request["new_session"]:
        os.setsid()
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.close(output)
    os.close(errors)
    os.chdir(request["cwd"])
    for name in STARTED_WITH - set(request["environment"]):
        os.environ.pop(name, None)
    os.environ.update(request["environment"])  # what the imports have set stays


def _run(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _exit_code(arguments: list[str]) -> int:
    """Runs the script; every other exception than SystemExit with a number passes, as do exits with a message."""
    try:
        _run(arguments)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        return end.code or 0
    return 0


def _end(code: int) -> NoReturn:
    """What an interpreter does at its end, in its order, up to the freeing of a million imported objects.

    That takes a child that does little most of its time, because it copies each page first.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code & 0xFF)


STARTED_WITH = frozenset(os.environ)

if __name__ == "__main__":
    _server = socket.socket(fileno=int(sys.argv[1]))
    for _module in sys.argv[2:]:
        import_module(_module)
    gc.freeze()
    if (_arguments := _serve(_server)) is not None:
        _end(_exit_code(_arguments))
