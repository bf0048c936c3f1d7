"""A server that speaks what the client of wandb needs for figures of runs; it keeps their history."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any


class WandbServer:
    """What it has been told.

    Attributes:
        address: for WANDB_BASE_URL.
        history: run -> its rows, as its clients put them.
        configs: run -> its configuration.
        working: while it is not set, every request fails.
    """

    def __init__(self) -> None:
        self.address = ""
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.configs: dict[str, Any] = {}
        self.working = Event()
        self.working.set()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL request."""
        name = variables.get("name")
        if operation == "UpsertBucket":
            assert isinstance(name, str)
            self.history.setdefault(name, [])
            if variables.get("config"):
                self.configs.setdefault(name, json.loads(variables["config"]))
            return {"upsertBucket": {"bucket": self._bucket(name), "inserted": not self.history[name]}}
        if operation == "RunResumeStatus":
            bucket = self._bucket(name) if name in self.history else None
            return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        return {}

    def append(self, run: str, files: dict[str, Any]) -> None:
        """Rows that a client sends, and from which row on."""
        if (chunk := files.get("wandb-history.jsonl")) is not None:
            rows = self.history[run]
            assert chunk["offset"] == len(rows), "a client has another number of rows"
            rows += map(json.loads, chunk["content"])

    def _bucket(self, name: str) -> dict[str, Any]:
        project = {"id": "p", "name": "alignkd", "entity": {"id": "e", "name": "me"}}
        rows = self.history[name]
        return {
            "id": name, "name": name, "displayName": name, "description": "", "sweepName": None, "project": project,
            "historyLineCount": len(rows), "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0, "summaryMetrics": "{}",
            "config": json.dumps(self.configs.get(name, {})), "tags": [], "notes": "",
            "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """The server while the block runs."""
    told = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            if not told.working.is_set():
                self._reply({"errors": [{"message": "down"}]}, 500)
                return
            document = json.loads(content) if self.path.endswith(("/graphql", "/file_stream")) else {}
            if self.path.endswith("/graphql"):
                self._reply({"data": told.answer(document.get("operationName", ""), document.get("variables") or {})})
            else:  # /files/ENTITY/PROJECT/RUN/file_stream
                told.append(self.path.split("/")[-2], document.get("files") or {})
                self._reply({"exitcode": None, "limits": {}})

        def _reply(self, document: dict[str, Any], code: int = 200) -> None:
            content = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        told.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield told
        server.shutdown()
