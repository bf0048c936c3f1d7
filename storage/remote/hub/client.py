"""Requests to the Hugging Face hub by its own client; the one module of storage that imports huggingface_hub.

The client finds the token (`hf auth login`, HF_TOKEN), the endpoint (HF_ENDPOINT), the cache (HF_HOME) and whether to
stay offline (HF_HUB_OFFLINE). It loads slowly, so it is imported when the first request is made. Its messages have
several lines and URLs; `hub/errors.py` turns them into one line.
"""

import functools
import glob
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignkd.storage.errors import RemoteError
from alignkd.storage.files.hub_location import HubLocation
from alignkd.storage.remote.hub.errors import HubProblem, problem_of
from alignkd.storage.remote.objects import AbsentError, Span, check_content_range, read_body
from alignkd.storage.remote.retry import with_retries
from alignkd.storage.remote.settings import RemoteSettings

T = TypeVar("T")
KIND = "dataset"
LIBRARY = "alignkd"
# of a file that is taken whole where a range was asked for
MAX_WHOLE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a data set at a commit.

    Attributes:
        path: in the data set.
        blob: git's sha1 of the file, of a pointer if `sha256` is given.
        sha256: of the content, of a file in large storage (LFS, Xet); None for a file in git.
    """

    path: str
    num_bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class HubData:
    """What the hub returns about a data set."""

    commit: str
    private: bool


class HubClient:
    """Requests about one data set, repeated as long as that may help; safe in threads and after a fork, can be pickled.

    Every method raises RemoteError for what the hub refuses. `download`, `get_range` and `tree` raise AbsentError for a
    file or folder that does not exist.
    """

    def __init__(self, place: HubLocation, settings: RemoteSettings) -> None:
        self.place, self.settings = place, settings

    @property
    def endpoint(self) -> str:
        """URL of the hub."""
        from huggingface_hub import constants

        return str(constants.ENDPOINT)

    @property
    def is_offline(self) -> bool:
        """Whether HF_HUB_OFFLINE forbids requests."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    @property
    def has_token(self) -> bool:
        """Whether the user has logged in, or HF_TOKEN is set."""
        from huggingface_hub import get_token

        return get_token() is not None

    def snapshot(self, patterns: Sequence[str]) -> tuple[str, Path]:
        """Fetch the files that match any pattern into the hub's cache.

        The revision is resolved here, once. Without a connection, the cache answers if it has all these files.

        Args:
            patterns: paths relative to the store, `*` for any text.

        Returns:
            The commit, and the folder of its files in the cache; other files may be there too.
        """
        from huggingface_hub import snapshot_download

        _without_warning()
        wanted = [glob.escape(self.place.in_repo("")) + pattern for pattern in patterns]
        found = self._repeated(
            "",
            lambda: snapshot_download(
                self.place.repo,
                repo_type=KIND,
                revision=self.place.revision,
                allow_patterns=wanted,
                max_workers=self.settings.connections,
                tqdm_class=_silent_bar(),
                library_name=LIBRARY,
            ),
        )
        return Path(found).name, Path(found)

    def download(self, path: str, commit: str) -> Path:
        """A file of the store in the hub's cache, fetched unless it is there."""
        from huggingface_hub import hf_hub_download

        found = self._repeated(
            path,
            lambda: hf_hub_download(
                self.place.repo,
                self.place.in_repo(path),
                repo_type=KIND,
                revision=commit,
                library_name=LIBRARY,
            ),
        )
        return Path(found)

    def get_range(self, path: str, commit: str, start: int, stop: int) -> Span | None:
        """Bytes `start:stop` of a file of the store, fewer where it ends; None if it ends before `start`."""

        def attempt(deadline: float) -> Span | None:
            with self._problems(path), self._answer(path, commit, {"Range": f"bytes={start}-{stop - 1}"}) as response:
                if response.status_code == 416:
                    return None
                headers = response.headers
                if headers.get("Content-Encoding", "identity") != "identity":
                    raise RemoteError(f"{self._subject(path)}: the hub sends it compressed without a request")
                is_part = response.status_code == 206
                if is_part:
                    count, total = check_content_range(headers.get("Content-Range"), start, stop)
                else:  # a server between may send all of a small file
                    count = total = int(headers.get("Content-Length", -1))
                    if not 0 <= count <= max(stop, MAX_WHOLE_BYTES):
                        raise RemoteError(f"{self._subject(path)}: the hub ignores Range requests; check HF_ENDPOINT")
                pieces = response.iter_raw(1 << 18)
                data = read_body(lambda size: next(pieces, b""), count, deadline)
                return Span(data=data if is_part else data[start:stop], total=total)

        return with_retries(self.settings, self._subject(path), attempt)

    @contextmanager
    def _answer(self, path: str, commit: str, headers: dict[str, str]) -> Iterator[Any]:
        from huggingface_hub import get_session, hf_hub_url

        url = hf_hub_url(self.place.repo, self.place.in_repo(path), repo_type=KIND, revision=commit)
        sent = {**_utils().build_hf_headers(library_name=LIBRARY), "Accept-Encoding": "identity", **headers}
        # the client drops the token when it follows a redirect to another host
        with get_session().stream(
            "GET", url, headers=sent, timeout=self.settings.timeout_seconds, follow_redirects=True
        ) as response:
            if response.status_code != 416:
                _utils().hf_raise_for_status(response)
            yield response

    def tree(self, commit: str) -> dict[str, HubFile]:
        """Every file of the store at a commit, by its path relative to the store."""

        def listed() -> dict[str, HubFile]:
            entries = self._api().list_repo_tree(
                self.place.repo, self.place.prefix or None, recursive=True, revision=commit, repo_type=KIND
            )
            start = len(self.place.in_repo(""))
            return {
                entry.path[start:]: HubFile(
                    path=entry.path,
                    num_bytes=entry.size,
                    blob=entry.blob_id,
                    sha256=entry.lfs.sha256 if entry.lfs is not None else None,
                )
                for entry in entries
                if hasattr(entry, "blob_id")  # a folder has none
            }

        return self._repeated("", listed, may_be_absent=True)

    def info(self) -> HubData:
        """The data set at the location's revision."""
        found = self._repeated(
            "", lambda: self._api().repo_info(self.place.repo, repo_type=KIND, revision=self.place.revision)
        )
        return HubData(commit=str(found.sha), private=bool(found.private))

    def create(self, private: bool) -> None:
        """Create the data set unless it exists."""
        self._repeated(
            "", lambda: self._api().create_repo(self.place.repo, repo_type=KIND, private=private or None, exist_ok=True)
        )

    def create_branch(self, branch: str) -> None:
        """Create a branch from `main` unless it exists."""
        self._repeated(
            "", lambda: self._api().create_branch(self.place.repo, branch=branch, repo_type=KIND, exist_ok=True)
        )

    def additions(self, files: Mapping[str, Path | bytes]) -> list[Any]:
        """Files to add, as `upload` and `commit` take them; each list once.

        Args:
            files: path relative to the store -> local file or content.
        """
        from huggingface_hub import CommitOperationAdd

        with self._problems(""):
            return [CommitOperationAdd(self.place.in_repo(path), source) for path, source in files.items()]

    def upload(self, additions: Sequence[Any]) -> None:
        """Send the content of large files; they become visible with `commit`. What the hub has is not sent again."""
        with self._problems(""):
            self._api().preupload_lfs_files(
                self.place.repo, additions, repo_type=KIND, revision=self.place.revision, free_memory=False
            )

    def commit(self, additions: Sequence[Any], deletions: Sequence[str], message: str, parent: str) -> str:
        """One commit of all changes, sent once; the new commit.

        Args:
            deletions: paths of files relative to the store.
            parent: the commit that must be the newest one.

        Raises:
            ChangedError: it is not.
            TransientError: no clear answer; the commit may have been made.
        """
        from huggingface_hub import CommitOperationDelete

        removals = [CommitOperationDelete(self.place.in_repo(path), is_folder=False) for path in deletions]
        with self._problems(""):
            made = self._api().create_commit(
                self.place.repo,
                [*additions, *removals],
                commit_message=message,
                repo_type=KIND,
                revision=self.place.revision,
                parent_commit=parent,
            )
        return str(made.oid)

    def sha256_of(self, addition: Any) -> str:
        """sha256 (hex) of what an addition sends; computed once, also for `upload`."""
        return str(addition.upload_info.sha256.hex())

    @contextmanager
    def no_bars(self) -> Iterator[None]:
        """Without the client's progress bars, one per shard, for the length of a block."""
        if _utils().are_progress_bars_disabled():
            yield
            return
        _utils().disable_progress_bars()
        try:
            yield
        finally:
            _utils().enable_progress_bars()

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(library_name=LIBRARY)

    def _repeated(self, path: str, work: Callable[[], T], *, may_be_absent: bool = False) -> T:
        def attempt(deadline: float) -> T:
            with self._problems(path, may_be_absent=may_be_absent):
                return work()

        return with_retries(self.settings, self._subject(path), attempt)

    @contextmanager
    def _problems(self, path: str, *, may_be_absent: bool = False) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the client raises many unrelated classes
            where = HubProblem(
                subject=self._subject(path),
                repo=self.place.repo,
                revision=self.place.revision,
                page=f"{self.endpoint}/datasets/{self.place.repo}",
                has_token=self.has_token,
                is_offline=self.is_offline,
            )
            found = problem_of(error, where)
            if found is error:
                raise
            if isinstance(found, AbsentError) and not (path or may_be_absent):
                found = RemoteError(
                    f"{where.subject}: the hub answers 404; check the name, and HF_ENDPOINT if it is set"
                )
            raise found from None

    def _subject(self, path: str) -> str:
        return f"{self.place.url}/{path}".rstrip("/")


def _utils() -> Any:
    """The client's public helpers, which its types do not export."""
    from huggingface_hub import utils

    return utils


@functools.cache
def _without_warning() -> None:
    """Drop the client's line about a folder without files that were asked for: the reader's error says more."""
    logger = logging.getLogger("huggingface_hub._snapshot_download")
    logger.addFilter(lambda record: not record.getMessage().startswith("No files matched allow_patterns"))


@functools.cache
def _silent_bar() -> Any:
    """A progress bar that shows nothing: thousands of small files are fetched."""
    from tqdm.auto import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        monitor_interval = 0  # no thread that watches bars

        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent


def git_blob(data: bytes) -> str:
    """The sha1 that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def cached_file(folder: Path, place: HubLocation, path: str) -> Path | None:
    """A file of the store in a snapshot's folder, if it is there."""
    found = folder / place.in_repo(path)
    return found if os.path.exists(found) else None  # noqa: PTH110 - called per opened file
