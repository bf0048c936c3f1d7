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
    found = CliRunner().invoke(main, [command, str(write_config(store={"path": "hdfs://bucket/store"}, **there))])
    (line,) = found.stderr.strip().splitlines()[-1:]
    assert (
        found.exit_code == 1
        and "store hdfs://bucket/store: scheme is hdfs, expected a folder, s3://BUCKET/PREFIX" in line
    )


def test_shards_refuse_it_too() -> None:
    for arguments in (["ls", "oss://c/s"], ["verify", "oss://c/s"], ["gc", "oss://c/s"], ["convert", "oss://c/s", "x"]):
        options = ["--backend", "zarr"] if arguments[0] == "convert" else []
        found = CliRunner().invoke(main, ["shards", *arguments, *options])
        (line,) = found.stderr.strip().splitlines()
        assert found.exit_code == 1 and "scheme is oss, expected a folder" in line


def test_a_web_server_cannot_be_dumped_to(write_config: WriteConfig) -> None:
    for place in ("https://host/store", "gs://bucket/store"):
        config = str(write_config(store={"path": place}))
        for command in ("dump", "plan"):
            found = CliRunner().invoke(main, [command, config])
            assert found.exit_code == 1 and f"store {place}: can only be read; write to a folder" in found.stderr


def test_the_hub_is_pushed_to(write_config: WriteConfig) -> None:
    found = CliRunner().invoke(main, ["dump", str(write_config(store={"path": "hf://datasets/o/n"}))])
    assert found.exit_code == 1 and "`alignkd shards push FOLDER hf://datasets/o/n`" in found.stderr


def test_nothing_is_removed_where_stores_are_only_read() -> None:
    found = CliRunner().invoke(main, ["shards", "gc", "hf://datasets/o/n"])
    assert found.exit_code == 1 and "hf:// is only read, so nothing is removed there" in found.stderr
