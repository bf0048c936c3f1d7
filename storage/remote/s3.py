"""A store in an S3-compatible bucket; the one module that imports botocore.

botocore and not a client with threads of its own (obstore, for one): those hang in a process forked after their
first request, as data-loading workers are. Here every process has its own connections.

Credentials come from botocore's usual chain (AWS_ACCESS_KEY_ID ..., profiles, instance roles), the endpoint of other
services from AWS_ENDPOINT_URL. Messages of the service are never shown: some repeat the key they were sent.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.location import parse_location
from alignkd.storage.remote.objects import AbsentError, Listed, Span, check_content_range, read_body, whole
from alignkd.storage.remote.retry import TransientError, with_retries
from alignkd.storage.remote.settings import RemoteSettings

T = TypeVar("T")
DELETE_KEYS = 1000  # what one request may delete
_OVERLOADED = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException"}


class ExistsError(Exception):
    """The object that was to be new is there already."""


class UnsupportedError(Exception):
    """The service does not know this kind of request."""


class S3Store:
    """See `alignkd.storage.remote.objects.ObjectStore`; writing is in `remote_upload`."""

    def __init__(self, location: str, settings: RemoteSettings) -> None:
        parsed = parse_location(location)
        self.location, self.bucket, self.settings = parsed.url, parsed.host, settings
        self._prefix = f"{parsed.prefix}/" if parsed.prefix else ""
        self._client: Any = None
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
        def attempt(deadline: float) -> Span:
            answer = self._send(path, "get_object", **self.key(path), Range=f"bytes={start}-{stop - 1}")
            count, total = check_content_range(answer.get("ContentRange"), start, stop)
            return Span(data=self._body(answer, count, deadline, path), total=total)

        try:
            return self.repeated(path, attempt)
        except _BeyondError:
            return Span(data=b"", total=self.size(path) or 0)

    def size(self, path: str) -> int | None:
        try:
            answer = self.repeated(path, lambda deadline: self._send(path, "head_object", **self.key(path)))
        except AbsentError:
            return None
        return int(answer["ContentLength"])

    def listed(self, folder: str) -> Iterator[Listed]:
        """Every object below a folder ("" = the whole store)."""
        token: dict[str, str] = {}
        while True:
            answer = self.send(folder, "list_objects_v2", Bucket=self.bucket, Prefix=self._below(folder), **token)
            for entry in answer.get("Contents", []):
                path = entry["Key"][len(self._prefix) :]
                yield Listed(path=path, num_bytes=int(entry["Size"]), modified=entry["LastModified"])
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
        """Delete objects; those that are not there count as deleted."""
        for path in paths:  # one by one: not every service has the request for many
            self.send(path, "delete_object", **self.key(path))

    def key(self, path: str) -> dict[str, str]:
        """The arguments that name an object."""
        return {"Bucket": self.bucket, "Key": self._prefix + path}

    def send(self, path: str, operation: str, **arguments: Any) -> Any:
        """One request, repeated as long as that may help; the parsed answer.

        Raises:
            AbsentError, ExistsError, UnsupportedError: what the service answered.
            RemoteError: it does not answer, or refuses.
        """
        return self.repeated(path, lambda deadline: self._send(path, operation, **arguments))

    def repeated(self, path: str, work: Callable[[float], T]) -> T:
        return with_retries(self.settings, self.subject(path), work)

    def subject(self, path: str) -> str:
        return f"{self.location}/{path}"

    def _below(self, folder: str) -> str:
        return f"{self._prefix}{folder}/" if folder else self._prefix

    def _body(self, answer: Any, count: int, deadline: float, path: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        body = answer["Body"]
        try:
            return read_body(body.read, count, deadline)
        except (BotoCoreError, OSError) as error:
            raise TransientError(_reason(error)) from None
        finally:
            body.close()

    def _send(self, path: str, operation: str, **arguments: Any) -> Any:
        client = self._connected()
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectTimeoutError,
            EndpointConnectionError,
            HTTPClientError,
        )

        try:
            return getattr(client, operation)(**arguments)
        except ClientError as error:
            raise self._translated(error.response, path) from None
        except (HTTPClientError, EndpointConnectionError, ConnectTimeoutError, OSError) as error:
            raise TransientError(_reason(error)) from None
        except BotoCoreError as error:
            raise RemoteError(f"{self.subject(path)}: {_reason(error)}; check the AWS_* variables") from None

    def _translated(self, response: Any, path: str) -> Exception:
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = re.sub(r"[^A-Za-z]", "", str(response.get("Error", {}).get("Code", "")))[:40] or str(status)
        if code == "NoSuchBucket":
            return RemoteError(f"{self.location}: there is no bucket {self.bucket}; create it, or correct the name")
        if status == 404:
            return AbsentError()
        if status == 412:
            return ExistsError()
        if status == 416:
            return _BeyondError()
        if status == 501:
            return UnsupportedError()
        if status >= 500 or status in (408, 409, 429) or code in _OVERLOADED:
            return TransientError(f"the service answers {status} {code}")
        step = "check the AWS_* variables (credentials, region, endpoint) and the bucket's permissions"
        return RemoteError(f"{self.subject(path)}: the service answers {status} {code}; {step}")

    def _connected(self) -> Any:
        """This process's client: connections must not be shared with a forked parent."""
        client = self._client
        if client is None or self._pid != os.getpid():
            client = self._client = _new_client(self.settings)
            self._pid = os.getpid()
        return client


class _BeyondError(Exception):
    """The range lies behind the object's end."""


def _new_client(settings: RemoteSettings) -> Any:
    try:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise StoreError("s3:// stores need botocore; pip install 'alignkd[remote]'") from None
    config = Config(
        connect_timeout=min(10.0, settings.timeout_seconds),
        read_timeout=settings.timeout_seconds,
        retries={"total_max_attempts": 1},  # with_retries repeats, also what breaks in the middle of a body
        max_pool_connections=settings.connections,
        # trailing checksums are refused by many S3-compatible services; uploads carry Content-MD5 instead
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version=UNSIGNED if _unsigned() else None,
    )
    try:
        session = botocore.session.Session()
        session.register_component("data_loader", _descriptions())
        return session.create_client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"s3: {_reason(error)}; check the AWS_* variables") from None


@functools.cache
def _descriptions() -> Any:
    """botocore's descriptions of services: parsing them takes longer than anything else about a client."""
    from botocore.loaders import Loader

    return Loader()


def _unsigned() -> bool:
    """Public buckets are read without credentials (the variable of GDAL and others)."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes")


def _reason(error: BaseException) -> str:
    """What happened, from the exception's class alone: messages hold URLs and more."""
    name = type(error).__name__
    known = {
        "NoCredentialsError": "no credentials found",
        "PartialCredentialsError": "only half of the credentials found",
        "NoRegionError": "no region",
        "ProfileNotFound": "AWS_PROFILE names no profile",
        "EndpointConnectionError": "no connection",
        "ConnectTimeoutError": "no connection in time",
        "ReadTimeoutError": "no answer in time",
        "ConnectionClosedError": "the connection broke",
        "ResponseStreamingError": "the connection broke",
        "IncompleteReadError": "the connection broke",
        "SSLError": "the TLS certificate or handshake fails",
    }
    return known.get(name, f"the request failed ({name})")
