"""A local server that speaks what huggingface_hub needs for data sets, and breaks on request.

It answers as the hub does: repositories with branches of commits, `preupload`, `commit`, LFS batch and upload, `tree`
in pages, `resolve` with Range, ETag and X-Repo-Commit, a redirect of large files to another host, and the hub's error
codes. The other host refuses requests with a token.
"""

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Request, Response, jsonify, redirect, request
from werkzeug.serving import WSGIRequestHandler, make_server

WRITER, READER = "hf_writer", "hf_reader"
PAGE = 7
Answer = Response | tuple[Response, int]


@dataclass
class Blob:
    """One file: content, and whether it is in large storage."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git(self) -> str:
        content = f"oid sha256:{self.sha256}".encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.git


@dataclass
class Repo:
    """A data set: all commits, and the newest one of each branch."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, tree: dict[str, Blob], message: str) -> str:
        content = repr(sorted((path, blob.oid) for path, blob in tree.items()))
        sha = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = tree, sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.commits[self.branches.get(revision, revision)].items()}


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    num_bytes: int


class HubServer:
    """The service; `break_with(kind, when, times)` makes answers go wrong.

    Kinds: a number answers with that status, `cut` sends half of the body and closes, `lost` does what was asked and
    closes without an answer, `whole` ignores a Range, `hang` never answers.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[Seen] = []
        self.faults: list[list[Any]] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.rate_limit_seconds = 0
        handler = type("Handler", (WSGIRequestHandler,), {"protocol_version": "HTTP/1.1", "log": lambda *_: None})
        self.server = make_server("127.0.0.1", 0, self._app(), threaded=True, request_handler=handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_url = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def break_with(self, kind: str | int, when: Callable[[Request], bool] = lambda _: True, times: int = 10**9) -> None:
        self.faults.append([kind, when, times])

    def heal(self) -> None:
        self.faults.clear()

    def asked(self, method: str, part: str) -> list[Seen]:
        return [one for one in self.seen if one.method == method and part in one.path]

    def _app(self) -> Flask:
        app = Flask("hub")
        app.url_map.merge_slashes = False
        repo = "/api/datasets/<org>/<name>"
        for rule, view, methods in (
            ("/api/repos/create", self._create, ["POST"]),
            (repo, self._info, ["GET"]),
            (f"{repo}/revision/<path:revision>", self._info, ["GET"]),
            (f"{repo}/branch/<path:branch>", self._branch, ["POST"]),
            (f"{repo}/tree/<rest>", self._tree, ["GET"]),
            (f"{repo}/tree/<rest>/<path:path>", self._tree, ["GET"]),
            (f"{repo}/preupload/<path:revision>", self._preupload, ["POST"]),
            (f"{repo}/commit/<path:revision>", self._commit, ["POST"]),
            ("/api/validate-yaml", lambda: jsonify({"errors": [], "warnings": []}), ["POST"]),
            ("/datasets/<org>/<name>.git/info/lfs/objects/batch", self._batch, ["POST"]),
            ("/datasets/<org>/<name>/resolve/<revision>/<path:path>", self._resolve, ["GET", "HEAD"]),
            ("/storage/<oid>", self._stored, ["GET", "HEAD", "PUT"]),
        ):
            app.add_url_rule(rule, f"{rule} {methods}", self._broken(view), methods=methods)
        return app

    def _broken(self, view: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(**arguments: str) -> Any:
            body = request.get_data()
            kind = self._fault()
            with self.lock:
                self.seen.append(Seen(request.method, request.full_path, dict(request.headers), len(body)))
            if kind == "whole":
                request.environ.pop("HTTP_RANGE", None)
                kind = None
            if kind == "hang":
                self.released.wait()
                return refused(503, "")
            if isinstance(kind, int):
                answer = refused(kind, "")
                if kind == 429:
                    answer.headers["RateLimit"] = f'"api";r=0;t={self.rate_limit_seconds}'
                return answer
            with self.lock:
                answer = view(**arguments)
            return answer if kind is None else cut(answer, nothing=kind == "lost")

        return wrapped

    def _fault(self) -> str | int | None:
        with self.lock:
            for fault in self.faults:
                if fault[2] > 0 and fault[1](request):
                    fault[2] -= 1
                    kind: str | int = fault[0]
                    return kind
        return None

    def _allowed(self, org: str, name: str, *, write: bool = False, content: bool = False) -> Repo | Response:
        """The repository, or the hub's refusal."""
        token, repo = request.headers.get("Authorization", "").removeprefix("Bearer "), self.repos.get(f"{org}/{name}")
        if token not in ("", WRITER, READER):
            return refused(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.private and not token):
            return refused(404 if token else 401, "RepoNotFound")
        if write and token != WRITER:
            return refused(403 if token else 401, "")
        if content and repo.gated and token != WRITER:
            return refused(403 if token else 401, "GatedRepo")
        return repo

    def _create(self) -> Response:
        if (token := request.headers.get("Authorization", "").removeprefix("Bearer ")) != WRITER:
            return refused(403 if token == READER else 401, "")
        asked = request.get_json()
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.repos:
            return refused(409, "", "You already created this dataset repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[repo_id] = Repo(private=private)
        self.repos[repo_id].add("main", {".gitattributes": Blob(b"*.tar filter=lfs\n", False)}, "initial commit")
        return jsonify({"url": f"{self.url}/datasets/{repo_id}"})

    def _info(self, org: str, name: str, revision: str = "main") -> Response:
        if isinstance(repo := self._allowed(org, name), Response):
            return repo
        if (sha := commit_of(repo, revision)) is None:
            return refused(404, "RevisionNotFound")
        return jsonify({"id": f"{org}/{name}", "sha": sha, "private": repo.private, "gated": repo.gated})

    def _branch(self, org: str, name: str, branch: str) -> Response:
        if isinstance(repo := self._allowed(org, name, write=True), Response):
            return repo
        if branch in repo.branches:
            return refused(409, "")
        repo.branches[branch] = repo.branches["main"]
        return jsonify({})

    def _tree(self, org: str, name: str, rest: str, path: str = "") -> Response:
        if isinstance(repo := self._allowed(org, name), Response):
            return repo
        if (sha := commit_of(repo, rest)) is None:
            return refused(404, "RevisionNotFound")
        below = f"{path}/" if path else ""
        entries = [entry_of(at, blob) for at, blob in sorted(repo.commits[sha].items()) if at.startswith(below)]
        if path and not entries:
            return refused(404, "EntryNotFound")
        folders = {at["path"].rpartition("/")[0] for at in entries} - {""}
        entries += [{"type": "directory", "path": at, "oid": "0" * 40} for at in sorted(folders)]
        start = int(request.args.get("cursor", 0))
        answer = jsonify(entries[start : start + PAGE])
        if start + PAGE < len(entries):
            url = f"{self.url}{request.path}?recursive=true&cursor={start + PAGE}"
            answer.headers["Link"] = f'<{url}>; rel="next"'
        return answer

    def _preupload(self, org: str, name: str, revision: str) -> Response:
        if isinstance(repo := self._allowed(org, name, write=True), Response):
            return repo
        if revision not in repo.branches:
            return refused(404, "RevisionNotFound")
        tree, found = repo.commits[repo.branches[revision]], []
        for file in request.get_json()["files"]:
            large = file["size"] > 10_000_000 or is_binary(base64.b64decode(file["sample"]))
            present = tree.get(file["path"])
            found.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if present is None else present.oid,
                }
            )
        return jsonify({"files": found})

    def _batch(self, org: str, name: str) -> Response:
        if isinstance(repo := self._allowed(org, name, write=True), Response):
            return repo
        objects = []
        for one in request.get_json()["objects"]:
            if one["oid"] not in self.objects:
                one = {**one, "actions": {"upload": {"href": f"{self.storage_url}/storage/{one['oid']}"}}}
            objects.append(one)
        return jsonify({"objects": objects, "transfer": "basic"})

    def _stored(self, oid: str) -> Response:
        if "Authorization" in request.headers:
            return refused(400, "", "a token for another host")
        if request.method != "PUT":
            return ranged(self.objects[oid])
        if hashlib.sha256(request.get_data()).hexdigest() != oid:
            return refused(400, "", "other content than announced")
        self.objects[oid] = request.get_data()
        return Response(status=200)

    def _commit(self, org: str, name: str, revision: str) -> Response:
        if isinstance(repo := self._allowed(org, name, write=True), Response):
            return repo
        lines = [json.loads(line) for line in request.get_data().splitlines()]
        header, parent = lines[0]["value"], repo.branches[revision]
        if header.get("parentCommit") not in (None, parent):
            return refused(412, "", "A commit has happened since. Please refresh and try again.")
        tree = dict(repo.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile" and value["oid"] in self.objects:
                tree[value["path"]] = Blob(self.objects[value["oid"]], True)
            elif line["key"] == "deletedFile" and value["path"] in tree:
                del tree[value["path"]]
            else:
                return refused(400, "", f"{line['key']} {value['path']} does not exist")
        sha = repo.add(revision, tree, header["summary"])
        return jsonify({"commitUrl": f"{self.url}/datasets/{org}/{name}/commit/{sha}", "commitOid": sha})

    def _resolve(self, org: str, name: str, revision: str, path: str) -> Any:
        if isinstance(repo := self._allowed(org, name, content=True), Response):
            return repo
        if (sha := commit_of(repo, revision)) is None:
            return refused(404, "RevisionNotFound")
        if (blob := repo.commits[sha].get(path)) is None:
            answer = refused(404, "EntryNotFound")
        elif blob.lfs:
            answer = redirect(f"{self.storage_url}/storage/{blob.sha256}")  # type: ignore[assignment]
            answer.headers["X-Linked-Size"] = str(len(blob.data))
            answer.headers["X-Linked-Etag"] = f'"{blob.oid}"'
        else:
            answer = ranged(blob.data)
            answer.headers["ETag"] = f'"{blob.oid}"'
        answer.headers["X-Repo-Commit"] = sha
        return answer


def refused(status: int, code: str, message: str = "") -> Response:
    answer = jsonify({"error": message or f"refused with {status}"})
    answer.status_code = status
    if code:
        answer.headers["X-Error-Code"] = code
    if message:
        answer.headers["X-Error-Message"] = message
    return answer


def ranged(data: bytes) -> Response:
    """All bytes, or those that the request names."""
    if (asked := request.headers.get("Range")) is None:
        return Response(data, 200)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    stop = min(int(last or len(data)) + 1, len(data))
    if int(first) >= len(data):
        return Response(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers = {"Content-Range": f"bytes {first}-{stop - 1}/{len(data)}"}
    return Response(data[int(first) : stop], 206, headers)


def cut(answer: Response, *, nothing: bool) -> Response:
    """The answer with its connection closed in the middle of the body."""
    body, connection = answer.get_data(), request.environ["werkzeug.socket"]
    if nothing:
        connection.shutdown(socket.SHUT_RDWR)

    def sent() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)

    broken = Response(sent(), answer.status_code, answer.headers)
    broken.headers["Content-Length"] = str(len(body) + 1)
    return broken


def commit_of(repo: Repo, revision: str) -> str | None:
    found = repo.branches.get(revision, revision)
    return found if found in repo.commits else None


def entry_of(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
    return entry


def is_binary(sample: bytes) -> bool:
    try:
        return b"\0" in sample or not sample.decode()
    except UnicodeDecodeError:
        return True
