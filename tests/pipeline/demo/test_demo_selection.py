"""The choice of the demo's settings: budget, rule, log, resumption, and the handwriting that it sees."""

import ast
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import demo_selection
import pytest
from demo_rows import trials as trial_rules
from demo_rows.grids import GRIDS, SETTINGS_PER_ROW
from demo_rows.objective_grids import OBJECTIVE_GRIDS, OBJECTIVES_SETTINGS
from demo_rows.released import why_not_released
from demo_rows.settings import Grid, Setting
from demo_rows.trials import SEEDS, Trial, TrialLog, chosen, every_trial, first_round, second_round
from demo_selection import chosen_changes, listed, select, table

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.demo import demo, recipes
from alignkd.pipeline.demo.folder import DemoFolder
from alignkd.pipeline.demo.processes import Command
from alignkd.pipeline.demo.recipes import ROWS, SUPERVISED_ONLY
from alignkd.pipeline.demo.run_config import run_config
from alignkd.pipeline.demo.settings import FULL, QUICK
from alignkd.pipeline.demo.world import dataset
from alignkd.pipeline.demo.world.scenes import Pool, Scene, make_scene
from alignkd.student_train.config import TrainConfig
from alignkd.vlm.errors import InputError

TINY = replace(
    QUICK, num_scenes=8, num_eval_scenes=4, development_scenes=4, shard_size=32, steps=2, micro_batch=4, teacher_batch=8
)


RELEASED = GRIDS.keys() & ROWS.keys()


def test_every_released_row_has_the_same_budget() -> None:
    for row in RELEASED - OBJECTIVE_GRIDS.keys():
        assert len(GRIDS[row].settings) == SETTINGS_PER_ROW and GRIDS[row].halving, row
    assert not any(grid.halving for row, grid in GRIDS.items() if row not in RELEASED)


def test_every_published_method_has_the_same_budget() -> None:
    assert OBJECTIVE_GRIDS.keys() == {recipe.name for recipe in recipes.OBJECTIVES} <= RELEASED
    for grid in OBJECTIVE_GRIDS.values():
        assert (len(grid.settings), grid.seeds, grid.halving) == (OBJECTIVES_SETTINGS, 1, False)


def test_the_best_of_one_seed_is_chosen_when_all_have_ended() -> None:
    row = next(iter(OBJECTIVE_GRIDS))
    trials = first_round(row)
    assert every_trial(row) == trials and [trial.seed for trial in trials] == [SEEDS[0]] * OBJECTIVES_SETTINGS
    found = {trial: 0.5 + 0.01 * place for place, trial in enumerate(trials)}
    assert second_round(row, found) == []
    assert chosen(row, found) == (trials[-1].setting, [found[trials[-1]]])
    assert chosen(row, {trial: found[trial] for trial in trials[1:]}) is None


def test_the_chosen_changes_are_shown(tmp_path: Path) -> None:
    """For rows whose trials have all ended, as text that is an entry of a dictionary."""
    log, row = TrialLog(tmp_path / "log.jsonl"), "mcd"
    for place, trial in enumerate(first_round(row)):
        assert chosen_changes([row], log, FULL) == []
        log.append({"row": row, "seed": trial.seed, "config": trial.config(FULL), "accuracy": 0.1 * place})
    (line,) = chosen_changes([row, "taid"], log, FULL)
    changes = {"train": {"learning_rate": 0.004}, "losses": {"effect": 10.0, "keep": 10.0}}
    assert ast.literal_eval(f"{{{line.partition('#')[0]}}}") == {row: changes}


@pytest.mark.parametrize("row", GRIDS)
def test_the_settings_of_a_row_differ_and_are_valid(row: str) -> None:
    folder = DemoFolder(Path("demo"))
    trials = first_round(row)
    configs = [json.dumps(trial.config(FULL), sort_keys=True) for trial in trials]
    assert all(one != other for one, other in combinations(configs, 2))
    for trial in trials:
        RunConfig.model_validate(run_config(folder, FULL, trial.recipe, trial.student(folder)))


def test_no_two_trials_share_a_folder() -> None:
    names = [trial.recipe.name for row in GRIDS for trial in first_round(row)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", sorted(GRIDS))
def test_the_grid_contains_the_settings_of_the_recipe(row: str) -> None:
    plain = Trial(row=row, setting=Setting(name="plain"), seed=SEEDS[0]).config(FULL)
    assert GRIDS[row].recipe.name == row

    def without_defaults(config: dict[str, Any]) -> dict[str, Any]:
        train = TrainConfig.model_validate({**config["train"], "output": "out"})
        return {"store": config["store"], "train": train.model_dump()}

    assert without_defaults(plain) in [without_defaults(trial.config(FULL)) for trial in first_round(row)]


@pytest.mark.parametrize("row", sorted(RELEASED))
def test_a_row_whose_selection_has_ended_has_the_chosen_settings(row: str) -> None:
    """The committed log against the recipes."""
    log = TrialLog(demo_selection.LOG)
    if chosen(row, log.accuracies(every_trial(row), FULL)) is not None:
        assert why_not_released(ROWS[row], log, FULL) is None


def test_a_grid_without_halving_tries_all_settings_with_all_seeds() -> None:
    first = first_round("layers_schedule")
    second = second_round("layers_schedule", dict.fromkeys(first, 0.1))
    assert len(second) == 2 * len(first) == 8


def test_no_seed_of_a_trial_is_reported() -> None:
    """The table has seeds 0 to 9."""
    assert min(SEEDS) >= 100 and len(set(SEEDS)) == 3


def test_the_better_settings_go_on_and_the_best_mean_wins() -> None:
    first = first_round("supervised")
    found = {trial: 0.01 * number for number, trial in enumerate(first)}
    assert second_round("supervised", dict(list(found.items())[1:])) == []
    second = second_round("supervised", found)
    assert [(trial.setting, trial.seed) for trial in second] == [
        (first[number].setting, seed) for number in (11, 10, 9, 8) for seed in (101, 102)
    ]
    assert chosen("supervised", found) is None
    # number 9 is third after the first round, but best in the second one
    found |= {trial: 0.95 if trial.setting == first[9].setting else 0.2 for trial in second}
    best = chosen("supervised", found)
    assert best == (first[9].setting, [0.09, 0.95, 0.95])


def test_a_trial_with_other_settings_is_not_taken_from_the_log(tmp_path: Path) -> None:
    log = TrialLog(tmp_path / "log.jsonl")
    trial = first_round("supervised")[0]
    log.append({"row": trial.row, "seed": trial.seed, "config": trial.config(FULL), "accuracy": 0.25})
    assert log.accuracies([trial], FULL) == {trial: 0.25}
    assert log.accuracies([trial], replace(FULL, steps=701)) == {}
    assert log.accuracies([replace(trial, seed=101)], FULL) == {}


def test_a_damaged_line_of_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"row": "supervised"}\n{"row"')
    with pytest.raises(InputError, match=r"log\.jsonl: line 2: expected a JSON object, found .*; remove the"):
        TrialLog(tmp_path / "log.jsonl").entries()


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The pools of all scenes that are made."""
    seen: set[str] = set()

    def record(seed: int, number: int, pool: Pool) -> Scene:
        seen.add(pool)
        return make_scene(seed, number, pool)

    monkeypatch.setattr(dataset, "make_scene", record)
    yield seen


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, phases_prepared: None) -> Callable[[], list[str]]:
    """The names of all commands since the last call."""
    run, names = demo.run_commands, list[str]()

    def recorded(
        commands: Sequence[Command], *, on_tick: Callable[[list[Command]], None] = lambda done: None, **_: Any
    ) -> None:
        for command in commands:
            names.append(command.name)
            run([command])
            on_tick([command])

    for module in (demo, demo_selection):
        monkeypatch.setattr(module, "run_commands", recorded)

    def taken() -> list[str]:
        found = names.copy()
        names.clear()
        return found

    return taken


RATES = (1e-3, 4e-3)
SMALL_GRID = {
    "supervised": Grid(
        recipe=SUPERVISED_ONLY,
        settings=tuple(Setting(name=f"rate-{rate:g}", train={"learning_rate": rate}) for rate in RATES),
    )
}


def test_a_selection_resumes_and_never_sees_the_test_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pools: set[str], trained: Callable[[], list[str]]
) -> None:
    for module in (demo_selection, trial_rules):
        monkeypatch.setattr(module, "GRIDS", SMALL_GRID)
    monkeypatch.setattr(trial_rules, "GOING_ON", 1)
    folder, log = DemoFolder(tmp_path / "out"), TrialLog(tmp_path / "log.jsonl")
    select(folder, TINY, ["supervised"], log, at_once=1)
    assert pools == {"train", "development"}
    assert not folder.test_set.conversations.exists()
    commands = trained()
    assert [name.split()[1] for name in commands if not name.startswith("train ")] == ["dump", "shards"] * 2
    entries = log.entries()
    # two settings with the first seed, the better one with the others
    assert [(entry["seed"], entry["pool"], entry["steps"]) for entry in entries] == [
        (seed, "development", TINY.steps) for seed in (100, 100, 101, 102)
    ]
    for entry in entries:
        name = f"supervised.{entry['setting']}-seed-{entry['seed']}"
        answers = json.loads((folder.root / "evaluations" / f"{name}.json").read_text())["answers"]
        needing = [answer["right"] for answer in answers if answer["images"]]
        assert entry["questions"] == len(needing)
        assert entry["accuracy"] == sum(needing) / len(needing)
    select(folder, TINY, ["supervised"], log, at_once=1)
    assert trained() == [] and log.entries() == entries
    # without its line, a trial is evaluated and logged again
    log.path.write_text("".join(json.dumps(entry) + "\n" for entry in entries[1:]))
    assert "supervised  rate-0.001  seed 100  waits" in listed(["supervised"], log, TINY)
    select(folder, TINY, ["supervised"], log, at_once=1)
    assert [name for name in trained() if name.startswith("train ")] == ["train supervised.rate-0.001-seed-100"]
    assert log.entries()[-1]["accuracy"] == entries[0]["accuracy"]
    assert "**" in table(["supervised"], log, TINY)
