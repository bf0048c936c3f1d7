"""The demo whose phases are forked from a prepared process."""

import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import click
import demo_results
import demo_selection
import pytest

from alignkd.pipeline.demo import demo, training
from alignkd.pipeline.demo.processes import ALIGNKD, Command


@pytest.fixture
def phases_prepared(
    alignkd_prepared: Callable[..., "subprocess.CompletedProcess[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's phases are processes as always, but have imported everything: `quick_demo` starts real ones."""

    def run_commands(commands: Sequence[Command], **options: Any) -> None:
        for command in commands:
            program, *arguments = command.arguments
            assert program == ALIGNKD
            finished = alignkd_prepared(*arguments)
            click.echo(finished.stdout + finished.stderr, err=True)
            assert finished.returncode == 0, finished.stderr

    for module in (demo, training, demo_selection, demo_results):
        monkeypatch.setattr(module, "run_commands", run_commands)
