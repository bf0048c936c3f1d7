"""The trials by which the demo's settings are chosen, and their log.

Every released row with a grid has the same budget: the settings of the grid (`demo_rows/grids.py`), each tried with the
first seed of `SEEDS`; the better `GOING_ON` of them also with the other seeds. The setting with the highest mean of all
seeds is chosen. Rows of published methods have a budget of their own (`Grid.seeds`). Accuracy is that on the questions
of the pool `development` that need the picture.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths
from alignkd.pipeline.demo.recipes import Recipe
from alignkd.pipeline.demo.run_config import deciding, run_config
from alignkd.pipeline.demo.settings import DemoSettings
from demo_rows.grids import GOING_ON, GRIDS
from demo_rows.json_lines_log import JsonLinesLog
from demo_rows.settings import Setting

SEEDS = (100, 101, 102)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One student of one setting."""

    row: str
    setting: Setting
    seed: int

    @property
    def recipe(self) -> Recipe:
        """The row with this setting; its name is unique among all settings of all rows."""
        recipe, setting = GRIDS[self.row].recipe, self.setting
        return replace(
            recipe,
            name=f"{recipe.name}.{setting.name}",
            train={**recipe.train, **setting.train},
            losses={**recipe.losses, **setting.losses},
            steps=recipe.steps if setting.steps is None else setting.steps,
        )

    def student(self, folder: DemoFolder) -> StudentPaths:
        """Files of the student."""
        return folder.student(self.recipe.name, self.seed)

    def config(self, settings: DemoSettings) -> dict[str, Any]:
        """`config_of` this trial's recipe."""
        return config_of(self.recipe, settings, self.seed)


def config_of(recipe: Recipe, settings: DemoSettings, seed: int) -> dict[str, Any]:
    """The sections `store` and `train` of a student, without paths and without terms of weight 0."""
    folder = DemoFolder(Path("/"))
    return deciding(run_config(folder, settings, recipe, folder.student(recipe.name, seed)))


class TrialLog(JsonLinesLog):
    """The log of all finished trials, in the order of their ends.

    A line has row, setting, seed, config, steps, accuracy, by_type, pool, questions, seconds, versions, date.
    """

    def accuracies(self, trials: Iterable[Trial], settings: DemoSettings) -> dict[Trial, float]:
        """Accuracy of the trials that have ended with exactly these settings; of several lines the last counts."""
        found = {_key(entry["row"], entry["seed"], entry["config"]): entry["accuracy"] for entry in self.entries()}
        keys = {trial: _key(trial.row, trial.seed, trial.config(settings)) for trial in trials}
        return {trial: found[key] for trial, key in keys.items() if key in found}


def _key(row: str, seed: int, config: Mapping[str, Any]) -> str:
    return json.dumps([row, seed, config], sort_keys=True)


def every_trial(row: str) -> list[Trial]:
    """Every setting of a row with every seed of its budget, whether it is tried or not."""
    return [Trial(row=row, setting=setting, seed=seed) for setting in GRIDS[row].settings for seed in seeds_of(row)]


def seeds_of(row: str) -> tuple[int, ...]:
    """The seeds of a row's trials."""
    return SEEDS[: GRIDS[row].seeds]


def first_round(row: str) -> list[Trial]:
    """Every setting of a row with the first seed."""
    return [Trial(row=row, setting=setting, seed=SEEDS[0]) for setting in GRIDS[row].settings]


def second_round(row: str, found: Mapping[Trial, float]) -> list[Trial]:
    """The better `GOING_ON` settings with the other seeds; empty until the first round has ended.

    Of settings with the same accuracy the earlier one in the grid goes on. In a grid without halving all go on.
    """
    first = first_round(row)
    if any(trial not in found for trial in first):
        return []
    going_on = GOING_ON if GRIDS[row].halving else len(first)
    better = sorted(first, key=lambda trial: -found[trial])[:going_on]
    return [replace(trial, seed=seed) for trial in better for seed in seeds_of(row)[1:]]


def chosen(row: str, found: Mapping[Trial, float]) -> tuple[Setting, Sequence[float]] | None:
    """The setting with the highest mean over all seeds and its accuracies; None until both rounds have ended."""
    first = first_round(row)
    second = second_round(row, found)
    if any(trial not in found for trial in (*first, *second)):
        return None
    means = {}
    for trial in second if len(seeds_of(row)) > 1 else first:
        means[trial.setting] = [found[replace(trial, seed=seed)] for seed in seeds_of(row)]
    return max(means.items(), key=lambda item: mean(item[1]))
