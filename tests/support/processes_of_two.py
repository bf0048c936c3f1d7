"""Trainings in processes of their own, alone, or two or more together."""

import socket
from collections.abc import Callable
from typing import Any


def place_of_two() -> dict[str, str]:
    """`place_of` for two processes."""
    return place_of(2)


def place_of(number: int) -> dict[str, str]:
    """What a launcher sets for each of so many processes, without RANK and LOCAL_RANK."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(number)}


def ended(child: Any, code: int = 0) -> str:
    """Wait until a process ends, with this exit code; what it wrote to stderr."""
    _, errors = child.communicate(timeout=600)
    assert child.returncode == code, errors
    return str(errors)


def run_two(start_child: Callable[..., Any], job: Any, *, code: int = 0) -> list[str]:
    """Train in two processes until both end with this exit code; what each wrote to stderr."""
    return run_several(start_child, job, 2, code=code)


def run_several(start_child: Callable[..., Any], job: Any, number: int, *, code: int = 0) -> list[str]:
    """The same in so many processes."""
    place = place_of(number)
    children = [start_child(job, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(number)]
    return [ended(child, code) for child in children]
