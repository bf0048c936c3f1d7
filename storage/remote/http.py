"""A store behind a plain web server, read-only; the one module that imports urllib3.

HTTP has no listing: readers request every commit record of the plan.
"""

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.location import parse_location
from alignkd.storage.remote.objects import AbsentError, Span, check_content_range, read_body, whole
from alignkd.storage.remote.retry import TransientError, with_retries
from alignkd.storage.remote.settings import RemoteSettings

if TYPE_CHECKING:
    import urllib3

MAX_REDIRECTS = 5
_OVERLOADED = {408, 425, 429, 500, 502, 503, 504}


class HttpStore:
    """See `alignkd.storage.remote.objects.ObjectStore`."""

    def __init__(self, location: str, settings: RemoteSettings) -> None:
        self.location = self.identity = parse_location(location).url
        self.settings = settings
        self._pool: urllib3.PoolManager | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def get(self, path: str, limit: int) -> bytes:
        return whole(self.get_range(path, 0, limit), limit, self._subject(path))

    def get_range(self, path: str, start: int, stop: int) -> Span:
        def attempt(deadline: float) -> Span:
            with self._request("GET", path, {"Range": f"bytes={start}-{stop - 1}"}) as response:
                if response.status == 416:
                    return Span(data=b"", total=self.size(path) or 0)
                count, total = self._span(response, path, start, stop)
                return Span(data=self._body(response, path, count, deadline), total=total)

        return with_retries(self.settings, self._subject(path), attempt)

    def size(self, path: str) -> int | None:
        def attempt(deadline: float) -> int:
            with self._request("HEAD", path) as response:
                length = response.headers.get("Content-Length", "")
                if not length.isdecimal():
                    raise RemoteError(f"{self._subject(path)}: the server sends no Content-Length; use another one")
                return int(length)

        try:
            return with_retries(self.settings, self._subject(path), attempt)
        except AbsentError:
            return None

    def _span(self, response: "urllib3.BaseHTTPResponse", path: str, start: int, stop: int) -> tuple[int, int]:
        if response.status == 206:
            return check_content_range(response.headers.get("Content-Range"), start, stop)
        length = response.headers.get("Content-Length", "")
        if start == 0 and length.isdecimal() and int(length) <= stop:
            return int(length), int(length)  # the whole file was requested
        raise RemoteError(
            f"{self._subject(path)}: the server ignores Range requests; serve the store with one that honours them "
            "(nginx, caddy, any S3 service)"
        )

    def _body(self, response: "urllib3.BaseHTTPResponse", path: str, count: int, deadline: float) -> bytes:
        from urllib3.exceptions import HTTPError

        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RemoteError(f"{self._subject(path)}: the server sends it compressed without a request; disable that")
        try:
            return read_body(lambda size: response.read(size, decode_content=False), count, deadline)
        except (HTTPError, OSError) as error:
            raise TransientError(_reason(error)) from None

    def _request(self, method: str, path: str, headers: dict[str, str] | None = None) -> "urllib3.BaseHTTPResponse":
        """Send a request once; the connection is closed unless the body is read to the end.

        Raises:
            AbsentError, TransientError, RemoteError
        """
        manager = self._manager()
        from urllib3.exceptions import HTTPError, MaxRetryError

        url = f"{self.location}/{quote(path)}"
        try:
            response = manager.request(
                method, url, headers={"Accept-Encoding": "identity", **(headers or {})}, preload_content=False
            )
        except MaxRetryError as error:
            raise TransientError("too many redirects" if error.reason is None else _reason(error.reason)) from None
        except (HTTPError, OSError) as error:
            raise TransientError(_reason(error)) from None
        try:
            self._check_status(response, path)
        except BaseException:
            response.close()
            raise
        return response

    def _check_status(self, response: "urllib3.BaseHTTPResponse", path: str) -> None:
        status = response.status
        if status in (404, 410):
            raise AbsentError
        if status in _OVERLOADED:
            raise TransientError(f"the server answers {status}")
        if status not in (200, 206, 416):
            raise RemoteError(f"{self._subject(path)}: the server answers {status}; check the URL and its permissions")
        final = urlsplit(response.geturl() or "").scheme
        if self.location.startswith("https:") and final not in ("", "https"):
            raise RemoteError(f"{self._subject(path)}: the server redirects from https to {final}; use another server")

    def _manager(self) -> "urllib3.PoolManager":
        """This process's connections: sockets must not be shared with a forked parent."""
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = _new_manager(self.settings), os.getpid()
        return self._pool

    def _subject(self, path: str) -> str:
        return f"{self.location}/{path}"


def _new_manager(settings: RemoteSettings) -> "urllib3.PoolManager":
    try:
        import urllib3
    except ImportError:
        raise StoreError("http(s):// stores need urllib3; pip install 'alignkd[remote]'") from None
    return urllib3.PoolManager(
        maxsize=settings.connections,
        timeout=urllib3.Timeout(connect=min(10.0, settings.timeout_seconds), read=settings.timeout_seconds),
        retries=urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=MAX_REDIRECTS),
    )


def _reason(error: BaseException) -> str:
    """What happened, from the exception's class alone: messages contain URLs."""
    name = type(error).__name__
    known = {
        "NewConnectionError": "no connection",
        "NameResolutionError": "the host's name is unknown",
        "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "no answer in time",
        "ProtocolError": "the connection broke",
        "IncompleteRead": "the connection broke",
        "SSLError": "the TLS certificate or handshake fails",
    }
    return known.get(name, f"the connection failed ({name})")
