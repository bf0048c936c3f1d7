"""Checkpoints by hub id: from a real cache folder without network, and fetched from a hub that runs in the test."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch
from http_servers import WebServer
from safetensors.torch import load_file, save_file

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model
from alignkd.vlm.weights.hub import resolve_checkpoint

FIRST, SECOND, HALF = "1" * 40, "2" * 40, "3" * 40
# One child answers every request: importing torch takes longer than loading these models.
LOAD = """
import hashlib, json, sys, torch
from pathlib import Path
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation, load_model
from alignkd.vlm.weights.hub import resolve_checkpoint
torch.set_num_threads(1)
answers = {}
for checkpoint in json.loads(sys.argv[1]):
    try:
        builder = load_preparation(checkpoint, template="v1", vision_config=Path(sys.argv[2]))
        model = load_model(checkpoint, vision_config=Path(sys.argv[2]))
        digest = hashlib.sha256(model.lm_head.weight.detach().numpy().tobytes()).hexdigest()
        answers[checkpoint] = {"head": digest, "vocab": len(builder.tokenizer)}
        answers[checkpoint]["folder"] = str(resolve_checkpoint(checkpoint))
    except ValueError as error:
        answers[checkpoint] = {"error": str(error)}
print(json.dumps(answers))
"""


FETCH = """
import json, sys
from alignkd.vlm.weights.hub import resolve_checkpoint
name, other = json.loads(sys.argv[1])
answers = {"without weights": [f.name for f in resolve_checkpoint(name, weights=False).iterdir()]}
answers[name] = [f.name for f in resolve_checkpoint(name).iterdir()]
try:
    resolve_checkpoint(other)
except ValueError as error:
    answers[other] = str(error)
print(json.dumps(answers))
"""


def run_child(code: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """The JSON object that `code` prints; the hub's settings are read at import, so it needs a process of its own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def add_to_cache(home: Path, name: str, commit: str, source: Path, refs: tuple[str, ...]) -> Path:
    """`source` as the hub's client lays it out: content-addressed blobs, and snapshots of links to them."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / blob.name)
    for ref in refs:
        (repository / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture(scope="module")
def cached(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a process without network makes of each id."""
    home = tmp_path_factory.mktemp("hf-home")
    add_to_cache(home, "org/tiny", FIRST, golden / "student", ("main",))
    add_to_cache(home, "org/tiny", SECOND, golden / "teacher", ("v1",))  # a .bin checkpoint
    half = tmp_path_factory.mktemp("half") / "half"
    shutil.copytree(golden / "student", half)
    weights = load_file(half / "model.safetensors")
    index = {"weight_map": {key: f"model-0000{1 + (key == 'lm_head.weight')}-of-00002.safetensors" for key in weights}}
    (half / "model.safetensors.index.json").write_text(json.dumps(index))
    (half / "model.safetensors").rename(half / "model-00001-of-00002.safetensors")
    add_to_cache(home, "org/half", HALF, half, ("main",))
    shutil.rmtree(half)
    (half).mkdir()
    shutil.copy(golden / "student/tokenizer.model", half)
    add_to_cache(home, "org/bare", HALF, half, ("main",))
    ids = ["org/tiny", "org/tiny@v1", f"org/tiny@{FIRST}", "org/tiny@nope", "org/half", "org/bare", "org/nothing"]
    return run_child(LOAD, json.dumps(ids), str(golden / "clip"), HF_HOME=str(home), HF_HUB_OFFLINE="1")


def head_of(checkpoint: str | Path, vision_config: Path) -> str:
    weight = load_model(checkpoint, vision_config=vision_config).lm_head.weight
    return hashlib.sha256(weight.detach().numpy().tobytes()).hexdigest()


def test_a_cached_model_loads_without_network_at_any_revision(cached: dict[str, Any], golden: Path) -> None:
    student, teacher = (head_of(golden / name, golden / "clip") for name in ("student", "teacher"))
    assert student != teacher
    assert cached["org/tiny"]["head"] == cached[f"org/tiny@{FIRST}"]["head"] == student
    assert cached["org/tiny@v1"]["head"] == teacher
    assert cached["org/tiny"]["folder"].endswith(f"snapshots/{FIRST}")
    assert cached["org/tiny@v1"]["vocab"] == 512


@pytest.mark.parametrize(
    ("checkpoint", "parts"),
    [
        (
            "org/tiny@nope",
            ["org/tiny@nope", "nor complete in the hub's cache", "HF_HUB_OFFLINE", "give a local folder"],
        ),
        ("org/nothing", ["org/nothing: neither a local folder nor complete in the hub's cache"]),
        ("org/half", ["names model-00002-of-00002.safetensors, which does not exist", "`hf download org/half`"]),
        ("org/bare", ["org/bare: no config.json in the hub's cache", "finish the download"]),
    ],
)
def test_what_the_cache_lacks_is_one_line_with_the_next_step(
    cached: dict[str, Any], checkpoint: str, parts: list[str]
) -> None:
    message = cached[checkpoint]["error"]
    assert all(part in message for part in parts), message
    assert "\n" not in message


class Hub(WebServer):
    """A hub with one model: what the client asks for its files, and nothing else. `fetched` lists the files sent."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.folder, self.fetched = folder, list[str]()


class HubRequest(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        files = sorted(self.server.folder.iterdir())
        if path == "/api/models/org/tiny/tree/" + FIRST:
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self.send(json.dumps(entries).encode())
        elif path == "/api/models/org/tiny/revision/main":
            self.send(json.dumps({"id": "org/tiny", "sha": FIRST, "siblings": []}).encode())
        elif path.startswith(f"/org/tiny/resolve/{FIRST}/") and (self.server.folder / Path(path).name).is_file():
            if self.command == "GET":
                self.server.fetched.append(Path(path).name)
            self.send((self.server.folder / Path(path).name).read_bytes(), etag=Path(path).name)
        else:
            self.send(b"{}", status=404)

    def send(self, body: bytes, *, status: int = 200, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", FIRST)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test asks `fetched`."""


@pytest.fixture
def hub(golden: Path, tmp_path: Path) -> Iterator[Hub]:
    """A model with weights in both formats and much that nobody needs."""
    folder = tmp_path / "repository"
    shutil.copytree(golden / "student", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    save_file({"x": torch.zeros(1)}, folder / "optimizer.safetensors")
    for name in ("README.md", "training_args.bin", "tf_model.h5", "rank0.pt"):
        (folder / name).write_bytes(b"not needed")
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_only_needed_files_are_fetched_and_weights_in_one_format(hub: Hub, golden: Path, tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}"}
    files = sorted(file.name for file in (golden / "student").iterdir())
    small = run_child(FETCH, json.dumps(["org/tiny", "org/other"]), **environment)
    assert sorted(small["without weights"]) == [name for name in files if name != "model.safetensors"]
    assert sorted(small["org/tiny"]) == sorted(hub.fetched) == files
    assert "org/other: neither a local folder nor a model on the hub" in small["org/other"]


def test_the_folder_of_a_run_names_the_student_in_it(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"but {re.escape(str(tmp_path / 'student'))} has; give that folder"):
        resolve_checkpoint(tmp_path)
    assert resolve_checkpoint(tmp_path / "student") == tmp_path / "student"


def test_names_that_are_no_hub_id_are_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in (tmp_path / "none", tmp_path / "file", Path("../none"), Path("./a/b/c"), "a/b/c", "name"):
        with pytest.raises(InputError, match="no such checkpoint folder; check the path"):
            resolve_checkpoint(name)
    assert resolve_checkpoint(tmp_path) == tmp_path
