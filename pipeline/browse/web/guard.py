"""Who may ask: the token of the command's URL, the Host header, and the headers that limit what a page may do."""

import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TOKEN = "token"
MAX_PORT_DIGITS = 5
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# scripts and styles come from the package only, and nothing of a store can become one
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI application around the pages: refuses requests of others, and adds `HEADERS` to every answer.

    A request needs the token, in the query (the URL that the command prints) or in the cookie that the answer to such a
    request sets. The Host header must name this server. A web page of another site has neither: its requests carry no
    cookie (SameSite=Strict), and a name of its own that leads to this machine (DNS rebinding) is another Host.
    """

    def __init__(self, app: App, *, token: str, host: str, port: int) -> None:
        """`host` and `port` are what the server listens at."""
        self._app, self._token, self._host, self._port = app, token, host, port
        # cookies are shared by all ports of a host: two browsers at once need two names
        self._cookie = f"alignkd-browse-{port}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: none of the pages opens one
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not names_this_server(headers.get("host", ""), self._host, self._port):
            await _refuse(send, 421, "the Host header names another server; use the URL that the command printed")
            return
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get(TOKEN, [])
        by_query = any(self._is_token(value) for value in asked)
        if not by_query and not self._is_token(_cookie(headers.get("cookie", ""), self._cookie)):
            await _refuse(send, 403, "no valid token; use the URL that the command printed, with ?token=...")
            return
        await self._app(scope, receive, self._with_headers(send, set_cookie=by_query))

    def _is_token(self, value: str) -> bool:
        return secrets.compare_digest(value.encode(), self._token.encode())

    def _with_headers(self, send: Send, *, set_cookie: bool) -> Send:
        more = dict(HEADERS)
        if set_cookie:
            more["set-cookie"] = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_encoded(more.items())]}
            await send(message)

        return sent


def names_this_server(given: str, host: str, port: int) -> bool:
    """Whether a Host header names a server that listens at `host` and `port`.

    Loopback names always do. If the server listens at every address of the machine, so do addresses (which no name
    server can redirect) and the machine's own name.
    """
    name, port_given = _split(given)
    if port_given not in (None, port):
        return False
    if name in LOOPBACK or name == host.strip("[]").lower():
        return True
    if host not in ("0.0.0.0", "::", ""):
        return False
    return _is_address(name) or name in {socket.gethostname().lower(), socket.getfqdn().lower()}


def _split(given: str) -> tuple[str, int | None]:
    """Name and port of a Host header; -1 for a port that is none."""
    given = given.strip().lower()
    name, colon, port = given.rpartition(":")
    if not colon or given.endswith("]"):
        name, port = given, ""
    found = int(port) if port.isascii() and port.isdigit() and len(port) <= MAX_PORT_DIGITS else -1
    return name.strip("[]"), found if port else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(header: str, name: str) -> str:
    """The value of a cookie; others in the header may have any form, as all servers of a host share their cookies."""
    for pair in header.split(";"):
        found, _, value = pair.partition("=")
        if found.strip() == name:
            return value.strip()
    return ""


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _refuse(send: Send, status: int, line: str) -> None:
    headers = {**HEADERS, "content-type": "text/plain; charset=utf-8"}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers.items())})
    await send({"type": "http.response.body", "body": f"alignkd shards browse: {line}\n".encode()})
