"""A server that speaks the hub's protocol, and stores in its data sets. The client is the real huggingface_hub."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import pytest
from hub_server import WRITER, Blob, HubServer, Repo, is_binary

from alignkd.storage import Manifest, open_writer
from alignkd.storage.remote import retry

TOKENIZER = b"a tokenizer" * 1000
REPO = "org/name"
URL = f"hf://datasets/{REPO}"


@pytest.fixture(scope="module")
def hub_service() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def hub(hub_service: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """An empty hub; the client has a token to write, a cache of its own, and makes short pauses."""
    server = hub_service
    server.repos, server.seen, server.faults, server.rate_limit_seconds = {}, [], [], 0
    server.objects.clear()
    constants = hub_constants
    # what HF_ENDPOINT, HF_HOME and HF_HUB_DISABLE_XET set when the client is imported
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("ALIGNKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ALIGNKD_STAGING", str(tmp_path / "staging"))
    monkeypatch.setenv("ALIGNKD_CACHE_BLOCK_BYTES", "4096")
    monkeypatch.setenv("ALIGNKD_REMOTE_ATTEMPTS", "3")
    return server


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """offline(True): as HF_HUB_OFFLINE=1 at the start of the process."""
    return lambda value: monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", value)


@pytest.fixture(scope="session")
def hub_stores(
    tmp_path_factory: pytest.TempPathFactory,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
) -> Callable[[str], Path]:
    """hub_stores(backend): a folder with five samples in two shards, one quarantined, and an attachment."""
    made: dict[str, Path] = {}

    def make(backend: str) -> Path:
        if backend not in made:
            attached = hashlib.sha256(TOKENIZER).hexdigest()
            manifest = make_manifest(
                backend=backend, num_samples=5, shard_size=3, attachments={"tokenizer.model": attached}
            )
            made[backend] = tmp_path_factory.mktemp("hub-stores") / backend
            open_writer(made[backend], manifest, {"tokenizer.model": TOKENIZER})
            write_store(made[backend], manifest, quarantine=(4,))
        return made[backend]

    return make


@pytest.fixture
def put_store(hub: HubServer) -> Callable[..., str]:
    """put_store(folder, prefix="", branch="main"): commits the files of a folder as they are; the new commit."""

    def put(folder: Path, prefix: str = "", branch: str = "main", **settings: Any) -> str:
        repo = hub.repos.setdefault(REPO, Repo(**settings))
        tree = {}
        for path in folder.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                blob = tree[f"{prefix}{path.relative_to(folder).as_posix()}"] = Blob(data, is_binary(data[:512]))
                if blob.lfs:
                    hub.objects[blob.sha256] = data
        return repo.add(branch, tree, "put")

    return put


def below(repo: Repo, prefix: str = "", revision: str = "main") -> dict[str, bytes]:
    """The files of a folder of a data set."""
    return {path[len(prefix) :]: data for path, data in repo.files(revision).items() if path.startswith(prefix)}
