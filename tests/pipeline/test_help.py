"""What `--help` shows at 80 columns."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from alignkd.pipeline.cli import main


def groups(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from groups(command, (*path, name))


@pytest.mark.parametrize("path", list(groups(main)), ids=lambda path: " ".join(path) or "alignkd")
def test_no_summary_is_cut_off(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    lines = shown.output[shown.output.index("Commands:") :].splitlines()[1:]
    assert lines and all(line.endswith(".") and not line.endswith("..") for line in lines), shown.output


def test_options_that_write_state_the_rule() -> None:
    rule = "--force"
    for path in (
        ["data", "stats"],
        ["stem", "extract"],
        ["shards", "export"],
        ["shards", "show"],
        ["configs"],
        ["report"],
    ):
        assert rule in CliRunner().invoke(main, [*path, "--help"]).output, path
