"""One process's client of an S3-compatible service; the one module that imports botocore.

botocore and not a client with threads of its own (obstore, for one): those hang in a process forked after their first
request, as data workers are. Here every process has its own connections.

Credentials come from botocore's usual chain (AWS_ACCESS_KEY_ID ..., profiles, instance roles), the endpoint of other
services from AWS_ENDPOINT_URL. Messages of the service are never shown: some repeat the key they were sent.

A read signs its request with botocore's signer and sends it over the client's own connections, past the rest of the
client, which takes more than half of the time of a short read (`benchmarks/remote_reads.py`). The first read goes
through the client: its request has the URL and the region that the client chose, and the client follows a bucket to
another region. So does every read that the service then refuses.
"""

import functools
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignkd.storage.errors import StoreError
from alignkd.storage.remote.retry import TransientError
from alignkd.storage.remote.settings import RemoteSettings

MAX_ERROR_BYTES = 1 << 16
# the service requires another region, address or credential, which only the client can find out
_ASK_CLIENT = {301, 302, 307, 308, 400, 401, 403}
_CODE = re.compile(rb"<Code>([^<]{1,80})</Code>")
_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]+/\d{8}/([^/,]+)/s3/aws4_request,")


class ServiceError(Exception):
    """The service refused a request."""

    def __init__(self, status: int, code: str) -> None:
        """HTTP status and S3 error code; a code of letters only, or the status."""
        self.status, self.code = status, re.sub(r"[^A-Za-z]", "", code)[:40] or str(status)
        super().__init__(status, self.code)


class SetupError(Exception):
    """A request that could not be sent: no credentials, no region, ...; the message contains no secrets."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a read: `read(n)` returns at most n bytes of the body; call `close` afterwards."""

    content_range: str | None
    read: Callable[[int], bytes]
    close: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class _Route:
    """How the client sent a read: URL before the key, region of the signature (None: unsigned), User-Agent."""

    base: str
    region: str | None
    agent: str


class S3Client:
    """Requests to one bucket, each sent once; safe in threads, not after a fork."""

    def __init__(self, bucket: str, settings: RemoteSettings) -> None:
        """Raises StoreError: botocore is missing, or the AWS_* variables or files are invalid."""
        self._bucket = bucket
        self._session, self._client = _new_client(settings)
        self._route: _Route | None = None
        self._sent = threading.local()
        self._client.meta.events.register("before-send.s3.GetObject", self._note_request)

    def call(self, operation: str, **arguments: Any) -> Any:
        """The parsed answer to a request.

        Raises:
            ServiceError: the service refused.
            TransientError: the connection broke.
            SetupError: no credentials, no region, or the like.
        """
        from botocore.exceptions import ClientError

        with _connection_errors():
            try:
                return getattr(self._client, operation)(**arguments)
            except ClientError as error:
                answer = error.response
                status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
                raise ServiceError(status, str(answer.get("Error", {}).get("Code", ""))) from None

    def read(self, key: str, first: int, last: int) -> Answer:
        """Start to read bytes `first` to `last` of an object; raises as `call`, also from `Answer.read`."""
        bytes_range = f"bytes={first}-{last}"
        if (route := self._route) is not None:
            answer = self._read_signed(route, key, bytes_range)
            if answer is not None:
                return answer
            self._route = None
        found = self.call("get_object", Bucket=self._bucket, Key=key, Range=bytes_range)
        self._route = self._route_of(key)
        return _answer(found.get("ContentRange"), found["Body"])

    def _read_signed(self, route: _Route, key: str, bytes_range: str) -> Answer | None:
        """None: the client must send the request."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.response import StreamingBody

        with _connection_errors():
            headers = {"Range": bytes_range, "User-Agent": route.agent}
            request = AWSRequest("GET", route.base + _quoted(key), headers=headers, stream_output=True)
            if route.region is not None:
                credentials = self._session.get_credentials().get_frozen_credentials()
                S3SigV4Auth(credentials, "s3", route.region).add_auth(request)
            # the client's own connections: proxies, certificates and time limits are the same
            response = self._client._endpoint.http_session.send(request.prepare())
        body = StreamingBody(response.raw, response.headers.get("Content-Length"))
        if response.status_code in (200, 206):
            return _answer(response.headers.get("Content-Range"), body)
        try:
            code = _CODE.search(_reader(body)(MAX_ERROR_BYTES))
        finally:
            body.close()
        if response.status_code in _ASK_CLIENT:
            return None
        raise ServiceError(response.status_code, "" if code is None else code[1].decode("ascii", "replace"))

    def _note_request(self, request: Any, **_: Any) -> None:
        self._sent.request = request

    def _route_of(self, key: str) -> _Route | None:
        """The route of the read that this thread sent last; None if only the client can send such reads."""
        url, quoted = str(self._sent.request.url), _quoted(key)
        headers = {name: _text(self._sent.request.headers[name]) for name in self._sent.request.headers}
        signature = headers.get("Authorization")
        scope = None if signature is None else _SCOPE.match(signature)
        if not url.endswith(quoted) or (signature is not None and scope is None):
            return None
        region = None if scope is None else scope[1]
        return _Route(base=url.removesuffix(quoted), region=region, agent=headers.get("User-Agent", ""))


def _answer(content_range: str | None, body: Any) -> Answer:
    return Answer(content_range=content_range, read=_reader(body), close=body.close)


def _reader(body: Any) -> Callable[[int], bytes]:
    def read(size: int) -> bytes:
        with _connection_errors():
            data: bytes = body.read(size)
            return data

    return read


class _connection_errors:  # noqa: N801 - used as a function; a generator would cost as much as the signature
    """Turns botocore's errors into those of this module."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, ServiceError):
            return
        from botocore.exceptions import (
            BotoCoreError,
            ConnectTimeoutError,
            EndpointConnectionError,
            HTTPClientError,
            IncompleteReadError,
            ResponseStreamingError,
        )

        connection = (
            HTTPClientError,
            EndpointConnectionError,
            ConnectTimeoutError,
            IncompleteReadError,
            ResponseStreamingError,
            OSError,
        )
        if isinstance(error, connection):
            raise TransientError(reason(error)) from None
        if isinstance(error, BotoCoreError):
            raise SetupError(reason(error)) from None


def _quoted(key: str) -> str:
    from botocore.utils import percent_encode

    return str(percent_encode(key, safe="/~"))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _new_client(settings: RemoteSettings) -> tuple[Any, Any]:
    """A session, which has the credentials, and its client."""
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
        return session, session.create_client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"s3: {reason(error)}; check the AWS_* variables") from None


@functools.cache
def _descriptions() -> Any:
    """botocore's descriptions of services: parsing them takes longer than anything else about a client."""
    from botocore.loaders import Loader

    return Loader()


def _unsigned() -> bool:
    """Public buckets are read without credentials (the variable of GDAL and others)."""
    return os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "true", "yes")


def reason(error: BaseException) -> str:
    """What happened, from the exception's class alone: messages contain URLs and more."""
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
