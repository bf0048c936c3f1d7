"""Stores in buckets (service: `tests/conftest.py`), a web server with ranges, a gateway that breaks things."""

import functools
import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from http_servers import WebServer

from alignkd.storage import Manifest, open_writer
from alignkd.storage.places import open_location
from alignkd.storage.remote import retry
from alignkd.storage.remote.files import RemoteFiles
from alignkd.storage.remote.settings import RemoteSettings

TOKENIZER = b"a tokenizer" * 1000


@dataclass(frozen=True)
class Stored:
    """One store in a folder and, copied object by object, in a bucket; not to be changed."""

    folder: Path
    bucket: Any

    @property
    def url(self) -> str:
        return str(self.bucket.url)


@pytest.fixture(scope="session")
def stores(
    tmp_path_factory: pytest.TempPathFactory,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    make_bucket: Callable[[], Any],
) -> Callable[[str], Stored]:
    """stores(backend): five samples in two shards, one quarantined, with an attachment."""

    @functools.cache
    def make(backend: str) -> Stored:
        attached = hashlib.sha256(TOKENIZER).hexdigest()
        manifest = make_manifest(
            backend=backend, num_samples=5, shard_size=3, attachments={"tokenizer.model": attached}
        )
        folder, bucket = tmp_path_factory.mktemp("stores") / backend, make_bucket()
        open_writer(folder, manifest, {"tokenizer.model": TOKENIZER})
        write_store(folder, manifest, quarantine=(4,))
        for path in folder.rglob("*"):
            if path.is_file():
                bucket.put(str(path.relative_to(folder)), path.read_bytes())
        return Stored(folder, bucket)

    return make


@pytest.fixture(params=["zarr", "webdataset"])
def stored(request: pytest.FixtureRequest, stores: Callable[[str], Stored], s3: None) -> Stored:
    return stores(request.param)


@pytest.fixture
def settings(tmp_path: Path, remote_environment: None, monkeypatch: pytest.MonkeyPatch) -> RemoteSettings:
    """Small blocks, short pauses between attempts; a request may take its time on a loaded machine."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    return RemoteSettings(
        cache_folder=tmp_path / "cache",
        block_bytes=4096,
        timeout_seconds=60,
        attempts=4,
        staging_folder=tmp_path / "staging",
    )


@pytest.fixture
def open_remote(settings: RemoteSettings) -> Callable[..., RemoteFiles]:
    """open_remote(url, ...): the files of a remote store with the settings of the tests."""
    return lambda url, **changed: open_location(url, settings.model_copy(update=changed))


Fault = Callable[["Exchange"], bool]


@dataclass
class Exchange:
    """One request on its way through the gateway."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    body: bytes = b""


@dataclass
class Gateway:
    """Passes requests on to a server. `break_with(kind, when, times)` makes answers go wrong.

    Kinds: `cut` closes in the middle of the body, `short` sends half of the body as if it were all, `flip` changes one
    bit of it, `lost` passes the request on and closes without an answer, `silent` does so after a wait, `slow` sends in
    pieces with pauses, a number answers with that status, `unconditional` drops If-None-Match, `unsupported`
    answers 501 to it.
    """

    url: str = ""
    seen: list[Exchange] = field(default_factory=list)
    most_at_once: int = 0
    pause: float = 0.0
    _faults: list[list[Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: int = 0

    def break_with(self, kind: str | int, when: Fault = lambda exchange: True, times: int = 10**9) -> None:
        self._faults.append([kind, when, times])

    def heal(self) -> None:
        self._faults.clear()

    def fault_for(self, exchange: Exchange) -> str | int | None:
        with self._lock:
            self.seen.append(exchange)
            for fault in self._faults:
                if fault[2] > 0 and fault[1](exchange):
                    fault[2] -= 1
                    return fault[0]
        return None

    def entered(self, change: int) -> None:
        with self._lock:
            self._running += change
            self.most_at_once = max(self.most_at_once, self._running)


@pytest.fixture
def gateway_to() -> Iterator[Callable[[str], Gateway]]:
    """gateway_to(url of a server): a gateway in front of it."""
    servers = []

    def start(target: str) -> Gateway:
        gateway = Gateway()
        handler = type("Handler", (_GatewayHandler,), {"gateway": gateway, "target": target.removeprefix("http://")})
        server = WebServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        gateway.url = f"http://127.0.0.1:{server.server_port}"
        return gateway

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def gateway(
    s3: None, s3_service: str, gateway_to: Callable[[str], Gateway], monkeypatch: pytest.MonkeyPatch
) -> Gateway:
    """A gateway to the S3 service; AWS_ENDPOINT_URL leads to it from now on."""
    made = gateway_to(s3_service)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    return made


@pytest.fixture
def serve_folder() -> Iterator[Callable[..., str]]:
    """serve_folder(folder, ranges=True): the URL of a web server."""
    servers = []

    def serve(folder: Path, ranges: bool = True) -> str:
        handler = type("Handler", (_FolderHandler,), {"folder": folder, "ranges": ranges})
        server = WebServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Nagle and delayed acknowledgements cost 40 ms an answer
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _FolderHandler(_Quiet):
    folder: Path
    ranges: bool

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.folder / self.path.lstrip("/")
        data = path.read_bytes() if path.is_file() else b""
        asked = self.headers.get("Range")
        if not path.is_file():
            self.send_response(404)
        elif asked and self.ranges:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            total, last = len(data), min(last, len(data) - 1)
            self.send_response(206 if first < total else 416)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}" if first < total else f"bytes */{total}")
            data = data[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


class _GatewayHandler(_Quiet):
    gateway: Gateway
    target: str

    def _pass(self) -> None:
        exchange = Exchange(self.command, self.path, dict(self.headers.items()))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.gateway.fault_for(exchange)
        self.gateway.entered(1)
        try:
            time.sleep(self.gateway.pause)
            self._answer(exchange, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.gateway.entered(-1)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def _answer(self, exchange: Exchange, body: bytes, fault: str | int | None) -> None:
        conditional = "If-None-Match" in exchange.headers
        if isinstance(fault, int) or (fault == "unsupported" and conditional):
            return self._send(fault if isinstance(fault, int) else 501, {}, b"<Error><Code>Broken</Code></Error>")
        if fault == "unconditional":
            exchange.headers.pop("If-None-Match", None)
        status, headers, answer = self._forward(exchange, body)
        exchange.status = status
        if fault in ("lost", "silent"):
            time.sleep(3 if fault == "silent" else 0)
            self.close_connection = True
            return None
        if fault == "flip" and answer:
            answer = bytes([answer[0] ^ 1]) + answer[1:]
        if fault == "short":
            answer = answer[: len(answer) // 2]
        return self._send(status, headers, answer, cut=fault == "cut", slow=fault == "slow")

    def _forward(self, exchange: Exchange, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.target, timeout=600)
        headers = {name: value for name, value in exchange.headers.items() if name not in ("Expect", "Connection")}
        connection.request(exchange.method, exchange.path, body or None, headers)
        response = connection.getresponse()
        answer = response.read()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _OWN_HEADERS}
        if exchange.method == "HEAD":
            kept["Content-Length"] = response.headers.get("Content-Length", "0")
        connection.close()
        return response.status, kept, answer

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False, slow: bool = False) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif slow:
            for start in range(0, len(body), 1 + len(body) // 4):
                self.wfile.write(body[start : start + 1 + len(body) // 4])
                self.wfile.flush()
                time.sleep(0.05)
        elif self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


_OWN_HEADERS = {"connection", "content-length", "transfer-encoding", "date", "server"}
