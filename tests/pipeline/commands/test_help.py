"""What `--help` shows at 80 columns, and that a new command is one file and one line."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import alignkd.pipeline.cli
import alignkd.pipeline.commands
from alignkd.pipeline.cli import COMMANDS, main

# the file that ARCHITECTURE.md describes under "Where to add"
TOY = '''"""`alignkd toy`: a command of the tests."""

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@json_option
@clean_errors
def toy(as_json: bool) -> None:
    """Show that a command is one file and one line.

    Example: alignkd toy --json
    """
    print_json({"json": as_json})
'''


def walk(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group, the root included."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None and command.name == name
        if isinstance(command, click.Group):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name), command


ALL = [pytest.param(path, command, id=" ".join(("alignkd", *path))) for path, command in walk(main)]
GROUPS = [item for item in ALL if isinstance(item.values[1], click.Group)]


def shown_commands(path: tuple[str, ...]) -> dict[str, str]:
    """Name -> one-line help, as the help of a group shows them at 80 columns."""
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=80)
    assert shown.exit_code == 0
    lines = shown.output.partition("Commands:\n")[2].splitlines()
    return dict(re.fullmatch(r"  (\S+)\s+(.*)", line).groups() for line in lines)  # type: ignore[union-attr]


def test_every_command_of_the_program_is_seen() -> None:
    names = {item.values[0] for item in ALL}
    assert {
        (),
        ("shards",),
        ("shards", "ls"),
        ("stem", "size"),
        ("data", "stats"),
        ("train",),
        ("train", "export"),
    } <= names
    assert len(GROUPS) == 6 and len(ALL) >= 25


@pytest.mark.parametrize(("path", "group"), GROUPS)
def test_one_line_helps_are_shown_whole(path: tuple[str, ...], group: click.Group) -> None:
    shown = shown_commands(path)
    commands = {
        name: group.get_command(click.Context(group), name) for name in group.list_commands(click.Context(group))
    }
    assert shown == {name: command.get_short_help_str(limit=1000) for name, command in commands.items() if command}
    assert not [text for text in shown.values() if not text.endswith(".") or text.endswith("..")]


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_command_and_group_has_an_example_that_can_be_typed(
    path: tuple[str, ...], command: click.Command
) -> None:
    """It starts with the command's own name and uses options that exist."""
    example = (command.help or "").partition("Example: ")[2].strip()
    words = shlex.split(example)
    assert words[: len(path) + 1] == ["alignkd", *path] and "\n\n" not in example
    for at in range(len(words), 0, -1):  # the example of a group calls one of its commands
        found = next((found for name, found in walk(main) if name == tuple(words[1:at])), None)
        if found is not None:
            break
    assert found is not None and (not isinstance(found, click.Group) or found.invoke_without_command)
    known = {option for parameter in found.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize(("path", "command"), ALL)
def test_every_option_has_a_help(path: tuple[str, ...], command: click.Command) -> None:
    assert not [option.name for option in command.params if isinstance(option, click.Option) and not option.help]


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


def test_each_file_of_commands_is_listed_and_the_other_way_round() -> None:
    folder = Path(alignkd.pipeline.commands.__file__).parent
    assert sorted(COMMANDS) == sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def test_a_new_command_is_one_file_and_one_line(tmp_path: Path) -> None:
    """The steps of ARCHITECTURE.md on a copy of the package: `commands/toy.py`, and a line in `cli.py`."""
    package = Path(alignkd.pipeline.cli.__file__).parents[1]
    shutil.copytree(package, tmp_path / "alignkd", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    cli = tmp_path / "alignkd" / "pipeline" / "cli.py"
    (cli.parent / "commands" / "toy.py").write_text(TOY)
    lines = cli.read_text().splitlines()
    lines.insert(lines.index("COMMANDS = (") + 1, '    "toy",')
    cli.write_text("\n".join(lines) + "\n")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "alignkd.pipeline.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "80"}
        return subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert re.search(r"^  toy +Show that a command is one file and one line\.$", run("--help"), re.M)
    assert "Example: alignkd toy --json" in run("toy", "--help")
    assert run("toy", "--json") == '{\n  "json": true\n}\n'
