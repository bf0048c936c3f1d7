"""Every command refuses a store at a place that nobody implements, in the same line, before anything is loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from alignkd.pipeline.cli import main

WriteConfig = Callable[..., Path]


@pytest.mark.parametrize("command", ["dump", "plan", "train"])
def test_a_store_in_another_cloud_is_refused(command: str, write_config: WriteConfig, tmp_path: Path) -> None:
    """The model's folder is not there either, which a command that loads it would find first."""
    missing = {"checkpoint": str(tmp_path / "not-there")}
    there = {} if command != "dump" else {"teacher": missing}
    found = CliRunner().invoke(main, [command, str(write_config(store={"path": "gs://bucket/store"}, **there))])
    (line,) = found.stderr.strip().splitlines()[-1:]
    assert (
        found.exit_code == 1 and "store gs://bucket/store: scheme is gs, expected a folder, s3://BUCKET/PREFIX" in line
    )


def test_shards_refuse_it_too() -> None:
    for arguments in (["ls", "az://c/s"], ["verify", "az://c/s"], ["gc", "az://c/s"], ["convert", "az://c/s", "x"]):
        options = ["--backend", "zarr"] if arguments[0] == "convert" else []
        found = CliRunner().invoke(main, ["shards", *arguments, *options])
        (line,) = found.stderr.strip().splitlines()
        assert found.exit_code == 1 and "scheme is az, expected a folder" in line


def test_a_web_server_cannot_be_dumped_to(write_config: WriteConfig) -> None:
    config = str(write_config(store={"path": "https://host/store"}))
    for command in ("dump", "plan"):
        found = CliRunner().invoke(main, [command, config])
        assert found.exit_code == 1 and "store https://host/store: can only be read; write to a folder" in found.stderr
