"""Credentials reach the service and nothing else: no object, no file, no log, no error, no pickle."""

import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import Manifest, Record, StoreError, StoreReader, open_writer

TOKEN = "session+token/for+tests=="


def test_credentials_are_nowhere(
    bucket: Any,
    gateway: Any,
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    make_record: Callable[..., Record],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("ALIGNKD_REMOTE_TIMEOUT", "2")
    secrets = [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], TOKEN]
    errors: list[str] = []
    caplog.set_level(logging.DEBUG, "alignkd")
    caplog.set_level(logging.INFO)

    def expect_error(work: Callable[[], object]) -> None:
        try:
            work()
        except StoreError as error:
            errors.append("".join(traceback.format_exception(error)))
            print(error)

    manifest = make_manifest(num_samples=2, shard_size=2, backend="webdataset")
    writer = open_writer(bucket.url, manifest)
    with writer.open_shard(0) as sink:
        for index in writer.planned_samples(0).tolist():
            sink.append(make_record(manifest, index))
        sink.commit()
    reader = StoreReader(bucket.url)
    assert reader[1].index in (0, 1)
    assert any(TOKEN in str(exchange.headers) for exchange in gateway.seen), "the service has to get them"
    kept = pickle.dumps(reader) + repr(vars(reader.files)).encode() + repr(vars(writer)).encode()
    for kind in (401, 403, 400):
        gateway.break_with(kind, times=1)
        expect_error(lambda: StoreReader(bucket.url))
    expect_error(lambda: StoreReader("s3://no-such-bucket/x"))
    expect_error(lambda: StoreReader(f"s3://{secrets[0]}:{secrets[1]}@{bucket.name}/x"))
    expect_error(lambda: StoreReader(f"https://{secrets[0]}:x@host/x?X-Amz-Security-Token={TOKEN}"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"no url {secrets[1]}")
    expect_error(lambda: StoreReader(bucket.url))
    assert len(errors) == 7
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    output = capfd.readouterr()
    everything = [*bucket.objects().values(), *files, kept, *map(str.encode, [*errors, caplog.text, *output])]
    assert len(files) > 2 and "check the AWS_* variables" in output.out
    for secret in secrets:
        assert not any(secret.encode() in data for data in everything)


def test_without_credentials_is_one_line(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match=r"manifest.json: no credentials found; check the AWS_\* variables$"):
        StoreReader(bucket.url)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    with pytest.raises(StoreError, match=r"manifest.json: there is no such object"):
        StoreReader(bucket.url)


@pytest.mark.parametrize("package, location", [("botocore", "s3://some-bucket/x"), ("urllib3", "http://127.0.0.1:1/x")])
def test_without_the_clients_the_extra_is_named(package: str, location: str) -> None:
    """In a process in which the package cannot be imported; importing storage needs none of them."""
    script = f"""
import sys
sys.modules["{package}"] = None
import alignkd.storage as storage
assert "botocore.session" not in sys.modules and "alignkd.storage.remote.files" not in sys.modules
try:
    storage.StoreReader("{location}")
except storage.StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"stores need {package}; pip install 'alignkd[remote]'")
