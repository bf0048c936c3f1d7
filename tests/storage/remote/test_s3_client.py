"""Reads that are signed here are the client's own: same address, same signature, and the client helps when refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from alignkd.storage.errors import RemoteError
from alignkd.storage.remote.s3.client import S3Client
from alignkd.storage.remote.s3.store import S3Store
from alignkd.storage.remote.settings import RemoteSettings

PATH = "shards/00000000-0a/odd name ~ü+%.bin"
DATA = bytes(range(256))


@pytest.fixture
def store(bucket: Any, gateway: Any, settings: RemoteSettings) -> S3Store:
    bucket.put(PATH, DATA)
    return S3Store(bucket.url, settings)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Operations that went through botocore's client."""
    made: list[str] = []
    call = S3Client.call

    def counted(self: S3Client, operation: str, **arguments: Any) -> Any:
        made.append(operation)
        return call(self, operation, **arguments)

    monkeypatch.setattr(S3Client, "call", counted)
    return made


def test_only_the_first_read_goes_through_the_client(store: S3Store, gateway: Any, calls: list[str]) -> None:
    for start in range(5):
        span = store.get_range(PATH, start, 100 + start)
        assert (span.data, span.total) == (DATA[start : 100 + start], len(DATA))
    assert calls == ["get_object"] and len(gateway.seen) == 5
    assert len({exchange.path for exchange in gateway.seen}) == 1


@pytest.mark.parametrize("token", ["", "session+token/for+tests=="])
def test_the_signature_is_the_clients(
    store: S3Store, gateway: Any, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests for the same bytes within one second must be equal to the last digit of the signature."""
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    for _ in range(20):  # a loaded machine may need more than one second between the two
        gateway.seen.clear()
        store._connected()._route = None
        store.get_range(PATH, 0, 10)
        store.get_range(PATH, 0, 10)
        by_client, signed = ({k.lower(): v for k, v in exchange.headers.items()} for exchange in gateway.seen)
        assert signed["x-amz-date"] >= by_client["x-amz-date"]
        if signed["x-amz-date"] == by_client["x-amz-date"]:
            break
    assert signed["authorization"] == by_client["authorization"]
    assert signed.get("x-amz-security-token", "") == token and signed["user-agent"] == by_client["user-agent"]


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403])
def test_the_client_sends_what_was_refused(store: S3Store, gateway: Any, calls: list[str], status: int) -> None:
    """It may follow the bucket to another region; a refusal that remains is its error."""
    store.get_range(PATH, 0, 10)
    gateway.break_with(status, times=1)
    assert store.get_range(PATH, 0, 10).data == DATA[:10]
    assert store.get_range(PATH, 5, 10).data == DATA[5:10]
    assert calls == ["get_object"] * 2
    gateway.break_with(403)
    with pytest.raises(RemoteError, match="the service answers 403 Broken; check the AWS_"):
        store.get_range(PATH, 0, 10)


def test_every_read_takes_the_present_credentials(
    store: S3Store, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of roles are renewed while a training runs."""
    store.get_range(PATH, 0, 10)
    for name in ("first", "second"):
        present = SimpleNamespace(access_key=name, secret_key="x", token=f"token-{name}")
        renewed = SimpleNamespace(get_frozen_credentials=lambda present=present: present)
        monkeypatch.setattr(store._connected()._session, "get_credentials", lambda renewed=renewed: renewed)
        store.get_range(PATH, 0, 10)
        headers = {name.lower(): value for name, value in gateway.seen[-1].headers.items()}
        assert f"Credential={name}/" in headers["authorization"]
        assert headers["x-amz-security-token"] == f"token-{name}"


def test_public_buckets_are_read_unsigned(
    bucket: Any, store: S3Store, gateway: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.client.put_object_acl(Bucket=bucket.name, Key=f"some/store/{PATH}", ACL="public-read")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    for _ in range(3):
        assert store.get_range(PATH, 0, 10).data == DATA[:10]
    assert calls == ["get_object"]
    assert not any(name.lower() == "authorization" for exchange in gateway.seen for name in exchange.headers)


def test_reads_use_the_proxy_of_the_environment(
    bucket: Any,
    settings: RemoteSettings,
    gateway_to: Callable[[str], Any],
    s3_service: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put(PATH, DATA)
    proxy = gateway_to(s3_service)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_service)
    store = S3Store(bucket.url, settings)
    for _ in range(2):
        assert store.get_range(PATH, 0, 10).data == DATA[:10]
    assert [exchange.path.startswith(f"{s3_service}/") for exchange in proxy.seen] == [True, True]
