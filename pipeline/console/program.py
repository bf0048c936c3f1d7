"""The `alignkd` program around its commands: loading them, encoding and caches before, standard streams after."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from alignkd.disk.cache_home import cache_home, has_home
from alignkd.pipeline.console.errors import INTERRUPTED, end_for
from alignkd.pipeline.console.plain_text import PlainTextStream
from alignkd.pipeline.console.printing import is_utf8, say

UTF8_MODE = "PYTHONUTF8"
# `alignkd` itself, and the script of `python -m alignkd.pipeline.cli` and of launchers
_PROGRAMS = ("alignkd", "alignkd/__main__.py", "pipeline/cli.py")


class Program(click.Group):
    """The root of all commands; it imports the file of a command only when that command is used.

    Called without arguments, it is the process's own program: it also prepares the process.

    Args:
        package: package with one module per command, which holds a command of the module's own name.
        modules: names of the modules.
    """

    def __init__(self, *arguments: Any, package: str = "", modules: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._package, self._modules = package, modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, sorted."""
        return sorted({*super().list_commands(ctx), *self._modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None if it does not exist."""
        if cmd_name not in self._modules:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"{self._package}.{cmd_name}"), cmd_name)
        return found

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """As in click; a caller that gives arguments (a test) keeps its own streams and environment."""
        if args is not None:
            return super().main(args, *rest, **extra)
        settle_encoding()
        settle_stdout()
        settle_caches()
        try:
            return super().main(args, *rest, **extra)
        except OSError as error:  # the reader of a usage message has ended
            end_for(error)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """As in click, which prints the help of the group here."""
        try:
            return super().make_context(*arguments, **extra)
        except OSError as error:
            end_for(error)

    def invoke(self, ctx: click.Context) -> Any:
        """As in click; flushing the buffer of stdout is part of the command's work."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except KeyboardInterrupt:  # while a command is imported; commands catch their own
            say("interrupted; run the same command again")
            sys.exit(INTERRUPTED)
        except OSError as error:
            end_for(error)


def settle_encoding() -> None:
    """Use UTF-8 for file names and texts in every locale, and escape characters that stdout or stderr cannot encode.

    If the locale has another encoding (LANG=en_US is ISO-8859-1 on many clusters), most file names cannot be opened
    at all. Python chooses the encoding at its start, so the process restarts itself in Python's UTF-8 mode. An
    explicit PYTHONUTF8 is kept.
    """
    if not is_utf8(sys.getfilesystemencoding()) and UTF8_MODE not in os.environ and _is_our_process():
        os.environ[UTF8_MODE] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settle_stdout() -> None:
    """Write control characters of texts as JSON does, so that a stranger's sample cannot command the terminal.

    stderr is as it was, because progress bars move the cursor there; messages on it are `printing.print_note`.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # sys.__stdout__ keeps the old stream alive
        sys.stdout = PlainTextStream.over(sys.stdout)


def settle_caches() -> None:
    """Give libraries a cache folder if the user has no home; otherwise they create a folder named `~`."""
    if has_home() or os.environ.get("XDG_CACHE_HOME"):
        return
    folder = str(cache_home())
    os.environ["XDG_CACHE_HOME"] = folder
    for variable in ("MPLCONFIGDIR", "TRITON_HOME"):  # other libraries use XDG_CACHE_HOME
        os.environ.setdefault(variable, folder)
    if os.environ.get("RANK", "0") == "0":
        say(f"user {os.getuid()} has no home folder: caches are in {folder}; set HOME or XDG_CACHE_HOME to keep them")


def _is_our_process() -> bool:
    """False in a notebook or a test that calls the command: a restart would restart them."""
    program = Path(sys.argv[0])
    return bool(sys.executable) and any(program.match(name) for name in _PROGRAMS)
