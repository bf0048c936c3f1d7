"""The steps of the Dockerfile that need no container: copies the build context, then runs its `pip` commands.

`pip wheel` runs as it stands; `pip install` runs with --dry-run by the project's environment, so that it finds out
whether the versions fit, and installs nothing.

Usage: python docker_check.py CHECKOUT FOLDER WHEEL, the wheel of the checkout, to which the image's must be equal
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from check_distributions import contents

PYTHON = "/opt/alignkd/bin/python"


class Instruction(NamedTuple):
    """A line of the Dockerfile with its continuations: `COPY`, and what follows."""

    name: str
    words: str


def instructions(dockerfile: str) -> list[Instruction]:
    """All instructions, without comments."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def copies(dockerfile: str) -> Iterator[tuple[list[str], str]]:
    """Sources and destination of every COPY from the build context."""
    for name, words in instructions(dockerfile):
        if name == "COPY" and not words.startswith("--from"):
            *sources, destination = words.split()
            yield sources, destination


class Ignored:
    """The rules of a .dockerignore file that the project uses: the last pattern that matches decides."""

    def __init__(self, text: str) -> None:
        self.patterns = [line for line in text.splitlines() if line and not line.startswith("#")]

    def __call__(self, path: str) -> bool:
        """Whether a file, by its path from the root of the context, is left out."""
        ignored = False
        for pattern in self.patterns:
            if self._matches(path, pattern.removeprefix("!")):
                ignored = not pattern.startswith("!")
        return ignored

    @staticmethod
    def _matches(path: str, pattern: str) -> bool:
        """A pattern matches a path or one of the folders above it; `**/` stands for any number of folders."""
        parts = path.split("/")
        anywhere = pattern.startswith("**/")
        heads = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(
            fnmatchcase(head.rsplit("/", 1)[-1] if anywhere else head, pattern.removeprefix("**/"))
            and (anywhere or head.count("/") == pattern.count("/"))
            for head in heads
        )


def context(checkout: Path) -> list[str]:
    """The files and links that the COPY instructions take, of those that git knows; each may be listed once only."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    ignored = Ignored((checkout / ".dockerignore").read_text(encoding="utf-8"))
    wanted = [
        source for sources, _ in copies((checkout / "Dockerfile").read_text(encoding="utf-8")) for source in sources
    ]
    return [
        name
        for name in listed
        if name and not ignored(name) and any(name == source or name.startswith(f"{source}/") for source in wanted)
    ]


def main(checkout: Path, folder: Path, wheel: Path) -> None:
    """Copy, run, compare."""
    source, wheels = folder / "source", folder / "wheels"
    for name in context(checkout):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout / name, source / name, follow_symlinks=False)
    arguments = {}
    for name, words in instructions((checkout / "Dockerfile").read_text(encoding="utf-8")):
        if name == "ARG":
            argument, _, value = words.partition("=")
            arguments[argument] = value
        if name == "RUN" and PYTHON in words:
            command = words.replace(PYTHON, sys.executable).replace("/wheels", str(wheels))
            command = command.replace("pip install", "pip install --dry-run --quiet").replace(
                "pip wheel", "pip wheel -q"
            )
            print(f"Dockerfile: {words[:100]}", flush=True)
            subprocess.run(["bash", "-e", "-c", command], cwd=source, env=os.environ | arguments, check=True)
    assert contents(wheels / wheel.name) == contents(wheel), "the image's wheel differs: is a COPY missing?"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
