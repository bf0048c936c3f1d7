"""A store in an S3-compatible bucket: its objects, for reading, listing and deleting. `upload.py` writes them."""

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from alignkd.storage.errors import RemoteError
from alignkd.storage.files.location import parse_location
from alignkd.storage.remote.objects import AbsentError, Dated, Span, check_content_range, read_body, whole
from alignkd.storage.remote.retry import TransientError, with_retries
from alignkd.storage.remote.s3.client import S3Client, ServiceError, SetupError
from alignkd.storage.remote.settings import RemoteSettings

T = TypeVar("T")
_OVERLOADED = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException"}


class ExistsError(Exception):
    """The object that was to be created exists already."""


class UnsupportedError(Exception):
    """The service does not support this kind of request."""


class _BeyondError(Exception):
    """The range starts behind the object's end."""


class S3Store:
    """See `alignkd.storage.remote.objects.ObjectStore`."""

    def __init__(self, location: str, settings: RemoteSettings) -> None:
        parsed = parse_location(location)
        self.location, self.bucket, self.settings = parsed.url, parsed.host, settings
        self._prefix = f"{parsed.prefix}/" if parsed.prefix else ""
        self._client: S3Client | None = None
        self._pid = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    @property
    def identity(self) -> str:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        return f"{endpoint} {self.location}"

    def get(self, path: str, limit: int) -> bytes:
        return whole(self.get_range(path, 0, limit), limit, self.subject(path))

    def get_range(self, path: str, start: int, stop: int) -> Span:
        try:
            return self._repeated(path, lambda client, deadline: self._read(client, path, start, stop, deadline))
        except _BeyondError:
            return Span(data=b"", total=self.size(path) or 0)

    def size(self, path: str) -> int | None:
        try:
            answer = self.send(path, "head_object", **self.key(path))
        except AbsentError:
            return None
        return int(answer["ContentLength"])

    def listed(self, folder: str) -> Iterator[Dated]:
        """Every object below a folder ("" = the whole store)."""
        token: dict[str, str] = {}
        while True:
            answer = self.send(folder, "list_objects_v2", Bucket=self.bucket, Prefix=self._below(folder), **token)
            for entry in answer.get("Contents", []):
                path = entry["Key"][len(self._prefix) :]
                yield Dated(path=path, num_bytes=int(entry["Size"]), modified=entry["LastModified"])
            if not answer.get("IsTruncated"):
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def names(self, folder: str) -> list[str]:
        """Names of objects and folders directly in a folder ("" = the store)."""
        found: list[str] = []
        below = self._below(folder)
        token: dict[str, str] = {}
        while True:
            answer = self.send(folder, "list_objects_v2", Bucket=self.bucket, Prefix=below, Delimiter="/", **token)
            found += [entry["Key"][len(below) :] for entry in answer.get("Contents", [])]
            found += [entry["Prefix"][len(below) :].rstrip("/") for entry in answer.get("CommonPrefixes", [])]
            if not answer.get("IsTruncated"):
                return [name for name in found if name]
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def delete(self, paths: list[str]) -> None:
        """Delete objects; those that do not exist count as deleted."""
        for path in paths:  # one by one: not every service has the request for many
            self.send(path, "delete_object", **self.key(path))

    def key(self, path: str) -> dict[str, str]:
        """The arguments that name an object."""
        return {"Bucket": self.bucket, "Key": self._prefix + path}

    def send(self, path: str, operation: str, **arguments: Any) -> Any:
        """One request, repeated as long as that may help; returns the parsed answer.

        Raises:
            AbsentError, ExistsError, UnsupportedError: the answer of the service.
            RemoteError: the service does not answer, or refuses.
        """
        return self._repeated(path, lambda client, deadline: client.call(operation, **arguments))

    def subject(self, path: str) -> str:
        return f"{self.location}/{path}"

    def _below(self, folder: str) -> str:
        return f"{self._prefix}{folder}/" if folder else self._prefix

    def _read(self, client: S3Client, path: str, start: int, stop: int, deadline: float) -> Span:
        answer = client.read(self._prefix + path, start, stop - 1)
        try:
            count, total = check_content_range(answer.content_range, start, stop)
            return Span(data=read_body(answer.read, count, deadline), total=total)
        finally:
            answer.close()

    def _repeated(self, path: str, work: Callable[[S3Client, float], T]) -> T:
        """Run `work(client, deadline)`, repeated as long as that may help; errors as of `send`."""

        def attempt(deadline: float) -> T:
            client = self._connected()
            try:
                return work(client, deadline)
            except ServiceError as error:
                raise self._translated(error, path) from None
            except SetupError as error:
                raise RemoteError(f"{self.subject(path)}: {error}; check the AWS_* variables") from None

        return with_retries(self.settings, self.subject(path), attempt)

    def _translated(self, error: ServiceError, path: str) -> Exception:
        status, code = error.status, error.code
        if code == "NoSuchBucket":
            return RemoteError(f"{self.location}: there is no bucket {self.bucket}; create it, or correct the name")
        known = {404: AbsentError, 412: ExistsError, 416: _BeyondError, 501: UnsupportedError}
        if status in known:
            return known[status]()
        if status >= 500 or status in (408, 409, 429) or code in _OVERLOADED:
            return TransientError(f"the service answers {status} {code}")
        step = "check the AWS_* variables (credentials, region, endpoint) and the bucket's permissions"
        return RemoteError(f"{self.subject(path)}: the service answers {status} {code}; {step}")

    def _connected(self) -> S3Client:
        """This process's client: connections must not be shared with a forked parent."""
        if self._client is None or self._pid != os.getpid():
            self._client, self._pid = S3Client(self.bucket, self.settings), os.getpid()
        return self._client
