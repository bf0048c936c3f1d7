"""Reading a store through fsspec gives what lies in a folder. The file system is fsspec's own in memory."""

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, registry

from alignkd.storage import Manifest, Record, StoreError, StoreReader, open_writer, verify_store
from alignkd.storage.errors import RemoteError
from alignkd.storage.read.listing import list_store
from alignkd.storage.remote import retry

URL = "gs://bucket/some/store"


class Bucket(MemoryFileSystem):
    """Objects in memory under gs://; what `faults` names is raised before the next requests."""

    protocol = "gs"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in the parent
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    faults: list[Exception] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("gs://", "memory://", 1)))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if self.faults:
            raise self.faults.pop()
        return bytes(super().cat_file(path, start=start, end=end, **kwargs))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Bucket]]:
    known = registry.get("gs")
    fsspec.register_implementation("gs", Bucket, clobber=True)
    for name, value in {
        "ALIGNKD_CACHE": str(tmp_path / "cache"),
        "ALIGNKD_STAGING": str(tmp_path / "staging"),
        "ALIGNKD_CACHE_BLOCK_BYTES": "4096",
        "ALIGNKD_REMOTE_ATTEMPTS": "3",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.01)
    Bucket.store.clear()
    Bucket.faults.clear()
    yield Bucket
    _registry.pop("gs")
    if known is not None:
        fsspec.register_implementation("gs", known, clobber=True)


@pytest.fixture
def put() -> Callable[[Path], None]:
    """put(folder): copies the files of a folder to URL."""

    def copy(folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                fsspec.filesystem("gs").pipe_file(f"{URL}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    return copy


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_it_equals_a_folder(
    bucket: type[Bucket],
    put: Callable[[Path], None],
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    assert_same: Callable[[Record, Record], None],
    tmp_path: Path,
    backend: str,
) -> None:
    """Also in a copy and in a forked process."""
    folder = write_store(tmp_path / "store", make_manifest(num_samples=5, shard_size=3, backend=backend))
    put(folder)
    expected, found = StoreReader(folder), StoreReader(URL)
    for position in range(4):
        assert_same(found[position], expected[position])
    assert_same(pickle.loads(pickle.dumps(found))[4], expected[4])
    assert list_store(URL) == list_store(folder)
    report = verify_store(URL, deep=True)
    assert report.ok and report.num_records == 5
    if not (pid := os.fork()):
        code = 1
        try:
            assert_same(StoreReader(URL)[4], expected[4])
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_goes_wrong_is_one_line(
    bucket: type[Bucket],
    put: Callable[[Path], None],
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = write_store(tmp_path / "store", make_manifest(num_samples=3, shard_size=3, backend="webdataset"))
    one_line(f"{URL}/manifest.json: there is no such object; is this the URL of a store?", lambda: StoreReader(URL))
    put(folder)
    bucket.faults += [ConnectionResetError("secret"), TimeoutError("secret")]
    assert len(StoreReader(URL)) == 3
    bucket.faults += [ConnectionResetError("secret")] * 9
    one_line("the connection failed (ConnectionResetError), 3 attempts in", lambda: StoreReader(URL), RemoteError)
    bucket.faults[:] = [PermissionError("secret")]
    one_line(
        "the service refuses (PermissionError); check GOOGLE_APPLICATION_CREDENTIALS",
        lambda: StoreReader(URL),
        RemoteError,
    )
    one_line("can only be read; write to a folder or to s3://", lambda: open_writer(URL, make_manifest()))


@pytest.mark.parametrize(
    "url, extra",
    [("gs://bucket/x", "gcs"), ("az://container/x", "azure"), ("abfs://c@a.dfs.core.windows.net/x", "azure")],
)
def test_a_missing_package_is_named(url: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNKD_CACHE", str(tmp_path))
    for name in ("gcsfs", "adlfs"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    one_line(f"pip install 'alignkd[{extra}]'", lambda: StoreReader(url))


def one_line(message: str, work: Callable[[], object], kind: type[StoreError] = StoreError) -> None:
    with pytest.raises(kind) as raised:
        work()
    assert message in str(raised.value) and "\n" not in str(raised.value) and "secret" not in str(raised.value)
