"""What is tried for a row of the demo: settings, and the budget with which one of them is chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkd.pipeline.demo.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one setting changes in its row.

    Attributes:
        name: name in the log and in paths, unique in its row.
        train, losses: keys of `train` and of `train.losses`, in addition to the row's.
        steps: multiple of the preset's steps; None leaves the row's.
    """

    name: str
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    losses: Mapping[str, Any] = field(default_factory=dict, hash=False)
    steps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings of one row.

    Attributes:
        recipe: the row; its name is that of the grid.
        settings: changes of the row.
        halving: only the better `GOING_ON` settings are tried with all seeds.
        seeds: with how many of the seeds of `trials.py` they are tried.
    """

    recipe: Recipe
    settings: tuple[Setting, ...]
    halving: bool = True
    seeds: int = 3
