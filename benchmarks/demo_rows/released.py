"""Which rows of the demo may be evaluated on the pool `test`, and their partners of the same cost."""

from collections.abc import Sequence
from dataclasses import replace

from alignkd.pipeline.demo.recipes import EVERYTHING, ROWS, SUPERVISED, SUPERVISED_ONLY, Recipe, named_rows
from alignkd.pipeline.demo.settings import DemoSettings
from demo_rows.grids import GRIDS
from demo_rows.objective_grids import OBJECTIVE_GRIDS
from demo_rows.trials import SEEDS, Trial, TrialLog, chosen, config_of, every_trial

_SAME_COST = f"{SUPERVISED}.cost-of-"


def why_not_released(recipe: Recipe, log: TrialLog, settings: DemoSettings) -> str | None:
    """The reason in one line, or None if the row has the settings that its selection has chosen.

    A row without a grid has the settings of another one, whose selection decides.
    """
    if recipe.name not in GRIDS:
        return why_not_released(_settings_of(recipe), log, settings)
    best = chosen(recipe.name, log.accuracies(every_trial(recipe.name), settings))
    if best is None:
        return f"{recipe.name}: its selection has not ended; run benchmarks/demo_selection.py --rows {recipe.name}"
    wanted = Trial(row=recipe.name, setting=best[0], seed=SEEDS[0]).config(settings)
    if config_of(recipe, settings, SEEDS[0]) != wanted:
        return f"{recipe.name}: the selection has chosen {best[0].name}; give the row these settings in recipes.py"
    return None


def released_rows(names: Sequence[str], log: TrialLog, settings: DemoSettings) -> list[Recipe]:
    """The named rows, each followed by its partner of the same cost if its trials have measured the cost.

    Published methods have no such partners.
    """
    rows: list[Recipe] = []
    for recipe in named_rows(names):
        rows.append(recipe)
        if recipe.name not in OBJECTIVE_GRIDS and (partner := same_cost(recipe, log, settings)) is not None:
            rows.append(partner)
    return rows


def same_cost(recipe: Recipe, log: TrialLog, settings: DemoSettings) -> Recipe | None:
    """The supervised student with as many steps as took the time of this row's steps; None without trials of both.

    The costs are those of the fastest trials with the rows' settings, because the trials share the machine with other
    work, and the fastest is the least disturbed. Both are of the newest version that ran trials of both. Their ratio is
    rounded to tenths.
    """
    if recipe.name == SUPERVISED:
        return None
    own, plain = seconds_per_step(recipe, log, settings), seconds_per_step(SUPERVISED_ONLY, log, settings)
    ran_both = [version for version in own if version in plain]
    if not ran_both:
        return None
    version = ran_both[-1]
    return replace(
        SUPERVISED_ONLY,
        name=f"{_SAME_COST}{recipe.name}",
        label=f"supervised, cost of {recipe.label}",
        steps=recipe.steps * round(own[version] / plain[version], 1),
        partner=recipe.name,
    )


def _settings_of(recipe: Recipe) -> Recipe:
    """The row with a grid whose settings a row without one has."""
    if recipe.name.startswith(_SAME_COST):
        return SUPERVISED_ONLY
    return ROWS["supervised_more"] if recipe.name == "supervised_more_true" else EVERYTHING


def seconds_per_step(recipe: Recipe, log: TrialLog, settings: DemoSettings) -> dict[str, float]:
    """Seconds per step of the fastest trial with the settings of a row, by version of this program, oldest first."""
    configs = [config_of(recipe, settings, seed) for seed in SEEDS]
    fastest: dict[str, float] = {}
    for entry in log.entries():
        if entry["config"] in configs:
            version, seconds = entry["versions"]["commit"], entry["seconds"] / entry["steps"]
            fastest[version] = min(seconds, fastest.get(version, seconds))
    return fastest


def known_rows() -> str:
    """Names of all rows but those of published methods, for an option's default."""
    return ",".join(name for name in ROWS if name in GRIDS and name not in OBJECTIVE_GRIDS)
