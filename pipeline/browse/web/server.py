"""Serving the pages until Ctrl-C. The only module that imports uvicorn."""

import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason
from alignkd.pipeline.browse.web.guard import App

# seconds that answers in progress have after Ctrl-C
PATIENCE_SECONDS = 1


class PortError(AlignkdError):
    """The server cannot listen at the given host and port."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 becomes a free one.

    Raises:
        PortError: the port is used, or the host is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host.strip("[]"), port))
    except OSError as error:
        found.close()
        step = "choose another by --port, or leave it out" if port else next_step(error)
        raise PortError(f"--host {host} --port {port}: {reason(error)}; {step}") from None
    return found


def make_server(app: App, *, started: Callable[[], Any] | None = None) -> uvicorn.Server:
    """A server for `app`; `run(sockets=[...])` serves until SIGINT or SIGTERM, or until `should_exit` is set.

    Args:
        started: called once when it answers.
    """
    settings: dict[str, Any] = {
        "log_level": "warning",
        "access_log": False,
        "lifespan": "off",
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": PATIENCE_SECONDS,
    }
    return _Server(uvicorn.Config(app, **settings), started)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], Any] | None) -> None:
        super().__init__(config)
        self._when_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._when_started is not None:
            self._when_started()
