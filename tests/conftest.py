"""Fixtures for every room: the golden cases, a tiny MobileVLM checkpoint, a real S3 service (moto's server).

Tests of models of transformers run for nine families, and for all of them where a model or a dump is compared with
transformers itself. `pytest --all-families` (`make test ARGS=--all-families`) runs the rest too: those with the marker
`more_families`.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from prepared_processes import PreparedProcesses

# Expected values were computed on a CPU, so every test runs on one, whatever this machine has. Tests with the marker
# `gpu` start processes with the fixture `gpu_environment`.
USERS_DEVICES = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Signals have their default effect in tests. `nohup` switches SIGHUP off, and a shell SIGINT where it starts with `&`.
for _number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on the clock or on luck: examples have no deadline and are the same in every run. To look for new
# ones: pytest --hypothesis-profile random.
_EVERYWHERE: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("fixed", derandomize=True, **_EVERYWHERE)
hypothesis.settings.register_profile("random", derandomize=False, **_EVERYWHERE)
hypothesis.settings.load_profile("fixed")

# What is imported until the last test is collected stays: a million objects that the garbage collector would look at
# again and again, in a tenth of all the time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-families", action="store_true", help="Run the tests with the marker more_families too.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-families"):
        return
    left_out = [item for item in items if item.get_closest_marker("more_families")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("more_families")]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


# Seconds after which something that is waited for will never come; on a loaded machine nothing takes nearly as long.
PATIENCE = 600.0
WaitUntil = Callable[[Callable[[], Any], str], None]

GOLDEN = Path(__file__).parent / "golden" / "mobilevlm_v2_tiny"
KEY_ID, SECRET = "AKIDFORTESTSONLY", "secret/for+tests"


@pytest.fixture(scope="session")
def patience() -> float:
    """Seconds to wait for a child process, or anything else that must come; a limit against hanging, not a measure."""
    return PATIENCE


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """wait_until(condition, what): polls until `condition()` is true; after `PATIENCE` the test fails with `what`."""

    def wait(condition: Callable[[], Any], what: str) -> None:
        limit = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > limit:
                pytest.fail(f"waited {PATIENCE:.0f} s in vain for {what}")
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def prepared() -> Iterator[PreparedProcesses]:
    """prepared.start(script, *arguments): a process that has imported torch and what both phases need, LoRA too."""
    modules = ["alignkd.pipeline.runs.teacher.dump", "alignkd.student_train.trainer", "peft", "zarr"]
    with PreparedProcesses(modules) as processes:
        yield processes


@pytest.fixture(scope="session")
def prepared_libraries() -> Iterator[PreparedProcesses]:
    """The same with the libraries alone: for processes that import another alignkd, or change it while they import."""
    modules = [
        "torchvision_first",
        "torch._dynamo",
        "torch.utils.tensorboard",
        "transformers.models.clip.modeling_clip",
        "transformers.models.llama.modeling_llama",
    ]
    with PreparedProcesses(modules) as processes:
        yield processes


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with a tiny teacher and student and the outputs of the original implementation."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_images() -> Path:
    """Folder of the golden samples' images."""
    return GOLDEN.parent / "images"


@pytest.fixture(scope="session")
def golden_expected() -> dict[str, Any]:
    """Loss terms of the original, by sample id."""
    return {case["id"]: case for case in json.loads((GOLDEN / "expected.json").read_text())}


@pytest.fixture(scope="session")
def gpu_environment() -> dict[str, str]:
    """Environment of a process that may use this machine's GPUs; the test is skipped where torch can use none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if USERS_DEVICES is not None:
        environment["CUDA_VISIBLE_DEVICES"] = USERS_DEVICES
    look = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
    found = subprocess.run(look, env=environment, capture_output=True, text=True, check=True)
    if found.stdout.strip() != "True":
        pytest.skip("torch can use no GPU on this machine")
    return environment


_SERVER = """
import functools, os, sys, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
import logging
logging.getLogger("werkzeug").setLevel(logging.ERROR)
# at every request it would list its own package: a third of the time
DomainDispatcherApplication.get_backend_for_host = functools.cache(DomainDispatcherApplication.get_backend_for_host)
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.server_port, flush=True)
# ends with the tests, however they end
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
"""


@dataclass
class Bucket:
    """A fresh bucket and a plain client to look into it, past the code under test."""

    name: str
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}/some/store"

    def objects(self) -> dict[str, bytes]:
        """Every object by its path relative to the store."""
        keys = [e["Key"] for page in self._pages() for e in page.get("Contents", [])]
        return {key.removeprefix("some/store/"): self.get(key) for key in keys}

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def put(self, path: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=f"some/store/{path}", Body=data)

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=f"some/store/{path}")

    def _pages(self) -> Any:
        return self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)


@pytest.fixture(scope="session")
def s3_service() -> Iterator[str]:
    """Endpoint of the S3 service."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def remote_variables() -> Callable[[Path], dict[str, str]]:
    """remote_variables(folder): credentials as users give them, cache and staging below the folder; empty variables
    are those of the user's own that must not be seen."""

    def make(folder: Path) -> dict[str, str]:
        hidden = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_NO_SIGN_REQUEST")
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")
        return {
            **dict.fromkeys((*hidden, *proxies), ""),
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "ALIGNKD_CACHE": str(folder / "cache"),
            "ALIGNKD_CACHE_BLOCK_BYTES": "4096",
            "ALIGNKD_STAGING": str(folder / "staging"),
        }

    return make


@pytest.fixture
def remote_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote_variables: Callable[[Path], dict[str, str]]
) -> None:
    """The process's environment with `remote_variables`."""
    for name, value in remote_variables(tmp_path).items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def make_bucket(s3_service: str) -> Callable[[], Bucket]:
    """make_bucket(): a new bucket."""
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=s3_service,
        region_name="us-east-1",
        aws_access_key_id="somebody",
        aws_secret_access_key="else",
    )

    def make() -> Bucket:
        bucket = Bucket(f"bucket-{uuid.uuid4().hex[:12]}", client)
        client.create_bucket(Bucket=bucket.name)
        return bucket

    return make


@pytest.fixture
def s3(s3_service: str, remote_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL leads to the service."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_service)


@pytest.fixture
def bucket(s3: None, make_bucket: Callable[[], Bucket]) -> Bucket:
    """A bucket for one test."""
    return make_bucket()
