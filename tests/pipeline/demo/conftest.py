"""The demo whose phases are forked from a prepared process."""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click
import demo_selection
import pytest

from alignkd.pipeline.demo import demo, training
from alignkd.pipeline.demo.processes import ALIGNKD, Command


@pytest.fixture(scope="session")
def phases_from_prepared(
    alignkd_prepared: Callable[..., "subprocess.CompletedProcess[str]"],
) -> Callable[[], AbstractContextManager[None]]:
    """Within `phases_from_prepared()`, the demo's phases are processes as always, but have imported everything; those
    of `test_demo_processes`, and of the demo that checks the wheel, are real ones."""

    def run_commands(commands: Sequence[Command], **options: Any) -> None:
        for command in commands:
            program, *arguments = command.arguments
            assert program == ALIGNKD
            finished = alignkd_prepared(*arguments)
            click.echo(finished.stdout + finished.stderr, err=True)
            assert finished.returncode == 0, finished.stderr

    @contextmanager
    def replaced() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for module in (demo, training, demo_selection):
                monkeypatch.setattr(module, "run_commands", run_commands)
            yield

    return replaced


@pytest.fixture
def phases_prepared(phases_from_prepared: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """`phases_from_prepared` for the whole test."""
    with phases_from_prepared():
        yield
