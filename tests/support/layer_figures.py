"""Runs of `alignkd` that print JSON, and the comparison of the figures of layers in them."""

import json
from collections.abc import Callable
from typing import Any

import pytest


def result(run: Callable[..., Any], *arguments: object) -> Any:
    """The JSON that a command prints."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same_figures(live: list[dict[str, Any]], stored: list[dict[str, Any]]) -> None:
    """Figures of `alignkd layers` against those of `alignkd shards stats`, whose targets are float32."""
    assert [found["layer"] for found in live] == [found["layer"] for found in stored]
    for one, other in zip(live, stored, strict=True):
        for name, value in other.items():
            assert one[name] == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), name
