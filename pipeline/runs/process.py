"""The process around a command: its encoding and caches before, its standard streams after."""

import io
import os
import sys
from pathlib import Path
from typing import Any

import click

from alignkd.disk.cache_home import cache_home, has_home
from alignkd.pipeline.console import end_for, is_utf8, say

UTF8_MODE = "PYTHONUTF8"
# what `alignkd`, `python -m alignkd` and `python -m alignkd.pipeline.cli` start, also below torchrun and deepspeed
_PROGRAMS = ("alignkd", "alignkd/__main__.py", "pipeline/cli.py")


class Program(click.Group):
    """The root of all commands. Called without arguments it is the process's own program."""

    def main(self, args: Any = None, *rest: Any, **extra: Any) -> Any:
        """As click's; another program (a test) that gives the arguments keeps its own streams and environment."""
        if args is not None:
            return super().main(args, *rest, **extra)
        settle_encoding()
        settle_caches()
        try:
            return super().main(args, *rest, **extra)
        except OSError as error:  # a usage message that nobody takes
            end_for(error)

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """As click's, which prints the help of the group here."""
        try:
            return super().make_context(*arguments, **extra)
        except OSError as error:
            end_for(error)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's; what is still in the buffer of stdout is part of the command's work."""
        try:
            result = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result
        except OSError as error:
            end_for(error)


def settle_encoding() -> None:
    """File names and texts as UTF-8 in every locale, and no character that stdout or stderr cannot take.

    Where the locale has another encoding (LANG=en_US is ISO-8859-1 on many clusters), most names of files cannot be
    opened at all; Python decides that when it starts, so the process starts again in its UTF-8 mode. An explicit
    PYTHONUTF8 is kept.
    """
    if not is_utf8(sys.getfilesystemencoding()) and UTF8_MODE not in os.environ and _is_our_process():
        os.environ[UTF8_MODE] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def settle_caches() -> None:
    """Give libraries a place for their caches where the user has no home; else they make a folder called `~`."""
    if has_home() or os.environ.get("XDG_CACHE_HOME"):
        return
    folder = str(cache_home())
    os.environ["XDG_CACHE_HOME"] = folder
    for variable in ("MPLCONFIGDIR", "TRITON_HOME"):  # the others look at XDG_CACHE_HOME
        os.environ.setdefault(variable, folder)
    if os.environ.get("RANK", "0") == "0":
        say(f"user {os.getuid()} has no home folder: caches are in {folder}; set HOME or XDG_CACHE_HOME to keep them")


def _is_our_process() -> bool:
    """Not a notebook or a test that calls the command: they would be started again."""
    program = Path(sys.argv[0])
    return bool(sys.executable) and any(program.match(name) for name in _PROGRAMS)
