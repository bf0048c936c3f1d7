"""The command line over a store in a bucket: dumped there, trained from, looked into, copied; and what goes wrong."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from http_servers import WebServer
from hub_server import WRITER, HubServer
from prepared_processes import PreparedProcesses
from safetensors.numpy import load_file

from alignkd.pipeline.cli import main

ROOT = Path(__file__).parents[3]
BOTH_PHASES = """
import sys
from alignkd.pipeline.cli import main
for config in sys.argv[1:]:
    main(["dump", config], standalone_mode=False)
    main(["train", config], standalone_mode=False)
"""


# small objects are read in one request; the tests of storage read in many
BLOCK_BYTES = "262144"


@dataclass(frozen=True)
class Dumped:
    """The golden samples dumped into a folder and into a bucket by one process, and students trained from both."""

    folder: Path
    local: Path
    url: str


@pytest.fixture(scope="module")
def dumped(
    tmp_path_factory: pytest.TempPathFactory,
    golden: Path,
    golden_images: Path,
    s3_service: str,
    make_bucket: Callable[[], Any],
    remote_variables: Callable[[Path], dict[str, str]],
    prepared: PreparedProcesses,
    patience: float,
) -> Dumped:
    folder = tmp_path_factory.mktemp("both")
    found = Dumped(folder, folder / "store", make_bucket().url)
    model = {"vision_config": str(golden / "clip"), "dtype": "float32"}
    for name, path in (("local", found.local), ("distant", found.url)):
        sections = {
            "data": {"conversations": str(golden / "v1.json"), "images": str(golden_images), "template": "v1"},
            "teacher": {"checkpoint": str(golden / "teacher"), **model},
            "student": {"checkpoint": str(golden / "student"), **model},
            "store": {"path": str(path), "backend": "webdataset", "inputs": "embed", "shard_size": 3},
            "train": {"output": str(folder / name), "steps": 2, "micro_batch": 2},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AWS_ENDPOINT_URL", s3_service)
        for name, value in remote_variables(folder).items():
            if value:
                patch.setenv(name, value)
            else:
                patch.delenv(name, raising=False)
        patch.setenv("ALIGNKD_CACHE_BLOCK_BYTES", BLOCK_BYTES)
        process = prepared.start("-c", BOTH_PHASES, "local.yaml", "distant.yaml")
    assert process.wait(patience) == 0, process.errors()[-4000:]
    return found


@pytest.fixture(autouse=True)
def large_blocks(remote_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `dumped`."""
    monkeypatch.setenv("ALIGNKD_CACHE_BLOCK_BYTES", BLOCK_BYTES)


@pytest.fixture(scope="module")
def refusing_service() -> Iterator[str]:
    """An S3 service that finds every signature wrong, and repeats the key in its answer as some do."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{self.headers}</Message></Error>".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_PUT = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = WebServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object, code: int = 0) -> Any:
    result = run("shards", *arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def one_line(result: Result) -> str:
    assert result.exit_code == 1 and result.stderr.startswith("alignkd: "), result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    return str(result.stderr)


def test_training_from_a_bucket_gives_the_terms_of_the_folder(dumped: Dumped, s3: None) -> None:
    volatile = ("seconds", "per_second", "wait", "time", "memory")
    local, distant = (
        [
            {key: value for key, value in json.loads(line).items() if not any(word in key for word in volatile)}
            for line in (dumped.folder / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("local", "distant")
    )
    assert len(local) == 2 and {"loss", "attention", "logit", "vision_all", "vision_top"} <= local[0].keys()
    assert distant == local
    assert json.loads((dumped.folder / "distant" / "run.json").read_text())["store"]["path"] == dumped.url
    assert not (dumped.folder / "s3:").exists()
    assert not [path for path in (dumped.folder / "staging").rglob("*") if path.is_file()]


def test_training_from_the_hub_gives_the_terms_of_the_folder(dumped: Dumped, tmp_path: Path, patience: float) -> None:
    """Pushed and trained from by processes of their own, with data workers"""
    sections = yaml.safe_load((dumped.folder / "local.yaml").read_text())
    sections["store"] = {"path": "hf://datasets/org/name@main"}
    sections["train"] |= {"output": str(tmp_path / "hub"), "data_workers": 2}
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump(sections))
    hub = HubServer()
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": WRITER,
        "HF_HUB_DISABLE_XET": "1",
        "ALIGNKD_CACHE": str(tmp_path / "cache"),
    }
    try:
        for command in (
            ["shards", "push", str(dumped.local), "hf://datasets/org/name"],
            ["train", str(tmp_path / "hub.yaml")],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "alignkd", *command], env=environment, capture_output=True, timeout=patience
            )
            assert done.returncode == 0, done.stderr.decode()[-4000:]
    finally:
        hub.close()
    local, distant = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (dumped.folder / "local", tmp_path / "hub")
    )
    assert len(local) == 2 and distant == local
    assert json.loads((tmp_path / "hub" / "run.json").read_text())["store"]["path"] == "hf://datasets/org/name@main"


def test_looking_into_a_bucket_shows_what_the_folder_shows(dumped: Dumped, s3: None, tmp_path: Path) -> None:
    for command in (
        ["ls", "{}"],
        ["show", "{}", "--id", "ft-1"],
        ["stats", "{}"],
        ["stats", "{}", "--exact", dumped.local],
        ["verify", "{}", "--quick"],
        ["verify", "{}", "--deep"],
    ):
        local, distant = (
            run_json(*(place if part == "{}" else part for part in command)) for place in (dumped.local, dumped.url)
        )
        for found in (local, distant):
            # when it was made, how, and where it lies: the rest is equal
            found.pop("store", None)
            found.pop("notes", None)
            found.get("manifest", {}).pop("created_with", None)
        assert distant == local, command
    assert run("shards", "verify", dumped.url).stdout.startswith(f"{dumped.url}: ok; 2 shards, 4 records")
    for name, place in (("local", dumped.local), ("distant", dumped.url)):
        run_json("export", place, "--id", "ft-1", "--out", tmp_path / f"{name}.safetensors")
    local, distant = (load_file(tmp_path / f"{name}.safetensors") for name in ("local", "distant"))
    assert local.keys() == distant.keys() and all((local[name] == distant[name]).all() for name in local)
    assert run("shards", "diff", dumped.local, dumped.url).stdout.endswith("equal: 4 records in both\n")


def test_a_store_goes_into_a_bucket_and_comes_back(dumped: Dumped, bucket: Any, tmp_path: Path) -> None:
    assert run_json("convert", dumped.local, bucket.url, "--backend", "zarr")["num_records"] == 4
    assert "nothing left to do" in run("shards", "convert", dumped.local, bucket.url, "--backend", "zarr").stdout
    assert run_json("convert", bucket.url, tmp_path / "back", "--backend", "webdataset")["num_records"] == 4
    roots = {run_json("ls", place)["root_hash"] for place in (dumped.local, tmp_path / "back")}
    assert len(roots) == 1
    dead = "shards/00000000-0badc0de/part"
    bucket.put(dead, b"what a dead writer left")
    found = run_json("gc", bucket.url, "--dry-run", "--older-than", "0s")
    assert [(left["path"], left["state"]) for left in found["leftovers"]] == [(dead.rpartition("/")[0], "found")]
    assert run_json("gc", bucket.url)["leftovers"][0]["state"] == "young" and dead in bucket.objects()
    assert run_json("verify", bucket.url, "--quick")["ok"]
    commit = next(name for name in bucket.objects() if name.endswith("zarr.json"))
    bucket.delete(commit)
    lost = run_json("verify", bucket.url, code=1)
    assert [problem["message"] for problem in lost["problems"]] == [f"{bucket.url}/{commit}: there is no such object"]
    assert "indexes are rebuilt in a folder" in one_line(run("shards", "index", "--rebuild", bucket.url))


@pytest.mark.parametrize(
    "command", [["ls"], ["show"], ["stats"], ["verify"], ["verify", "--quick"], ["verify", "--deep"], ["gc"]]
)
def test_what_goes_wrong_is_one_line_without_secrets(
    dumped: Dumped, s3: None, refusing_service: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = [os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]]
    lines = [one_line(run("shards", *command, "s3://no-such-bucket/store"))]
    assert "there is no bucket no-such-bucket" in lines[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_service)
    lines.append(one_line(run("shards", *command, dumped.url)))
    assert "403" in lines[1] and "check the AWS_* variables" in lines[1]
    if command == ["verify", "--deep"]:  # repeated as any failing request: once is enough here
        monkeypatch.setattr("alignkd.storage.remote.retry.time.sleep", lambda seconds: None)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        lines.append(one_line(run("shards", *command, dumped.url)))
        assert "no connection, 7 attempts" in lines[2]
    lines.append(one_line(run("shards", *command, f"s3://{secrets[0]}:{secrets[1].replace('/', '')}@bucket/x")))
    assert not [secret for secret in secrets for line in lines if secret in line or secret.replace("/", "") in line]
