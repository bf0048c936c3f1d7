"""Presets of published methods: what they set, what overrides them, and a run of each from the dump on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from stem_runs import FULL, dumped, entry, trained

from alignkd.pipeline.cli import main
from alignkd.pipeline.config.run_config import load_run_config
from alignkd.pipeline.plan.objective import objective_line, planned_objective
from alignkd.storage.schema.targets.attention import NAMES
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.presets import METHODS, preset_losses
from alignkd.student_train.objective.terms import TERMS
from alignkd.vlm.errors import InputError

WriteConfig = Callable[..., Path]


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"output": "out", "steps": 10} | values)


@pytest.mark.parametrize("preset", METHODS)
def test_it_sets_every_weight_and_its_settings(preset: Any) -> None:
    method, losses = METHODS[preset], config(preset=preset).losses
    assert {**losses.weights, **losses.chosen_settings} == {
        name: value for name, value in method.losses.items() if name not in TERMS or value
    }
    assert preset_losses(preset).keys() >= TERMS.keys()
    assert method.differs.endswith(".") and method.source.startswith("arXiv ")


@pytest.mark.parametrize("preset", METHODS)
def test_explicit_keys_override_it(preset: Any) -> None:
    if METHODS[preset].pairs:
        changed = config(preset=preset, preference="dpo", losses={"supervised": 0.25})
        assert (changed.preference, changed.kto_kl_gradient) == ("dpo", False)
        assert changed.losses.weights == {"supervised": 0.25, "preference": 1.0}
        return
    losses = config(preset=preset, losses={"supervised": 0.25, "logit": 0.0}).losses
    own = {name: value for name, value in config(preset=preset).losses.weights.items() if name != "logit"}
    assert losses.weights == {**own, "supervised": 0.25}
    settings = config(preset=preset).losses.chosen_settings
    assert {"logit_divergence": settings["logit_divergence"], **losses.chosen_settings} == settings


@pytest.mark.parametrize("preset", METHODS)
def test_a_run_from_the_dump_to_the_last_step(preset: str, write: WriteConfig, tmp_path: Path) -> None:
    """On the store that the preset names; every term that it weighs has a value."""
    store = dict(METHODS[preset].store)
    if "attention" in store:  # of this teacher the band holds fewer layers than of the student
        store["attention"] = {**store["attention"], "layers": "0%-100%"}
    data = {"conversations": str(pairs_of_answers(tmp_path)), "pairs": True} if METHODS[preset].pairs else {}
    path = write("run", store=store, train={"preset": preset, "steps": 2, "losses": {}}, data=data)
    dumped(path)
    lines = trained(path)
    weights = load_run_config(path, "run").train.losses.weights  # type: ignore[union-attr]
    for line in lines:
        assert all(math.isfinite(line[name]) for name in weights), line
        assert not {*TERMS} - {*weights} & {*line}
    assert any(line[name] for line in lines for name in weights)


@pytest.mark.parametrize("preset", ["paper", *(name for name, method in METHODS.items() if not method.pairs)])
def test_the_store_of_the_documents_serves_every_method(preset: str, tmp_path: Path) -> None:
    """The configuration refuses a loss without a target; the documents name the keys of `store` in one block."""
    page = (Path(__file__).parents[3] / "docs" / "objectives.md").read_text()
    block = page.split("## Comparing methods on one store")[1].split("```yaml\n")[1].split("```")[0]
    sections = yaml.safe_load(block)
    sections["train"] |= {"preset": preset, "steps": 1}
    sections |= {"data": {"conversations": "a.json", "images": "images"}, "teacher": {"checkpoint": "teacher"}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    assert load_run_config(path, "dump").train.losses.weights  # type: ignore[union-attr]


def pairs_of_answers(folder: Path) -> Path:
    """Questions with two answers each."""
    entries = [
        {**entry(number, [image], "<image>\nWhat is this?", ""), "chosen": chosen, "rejected": rejected}
        for number, (image, chosen, rejected) in enumerate(
            [("coffee.png", "a cup of coffee", "a dog"), ("rocket.jpg", "a rocket", "a house on a hill")]
        )
    ]
    for one in entries:
        one["conversations"] = one["conversations"][:1]
    path = folder / "pairs.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.mark.parametrize("preset", [preset for preset, method in METHODS.items() if method.store])
def test_a_store_without_its_targets_is_refused_with_the_key(preset: str, write: WriteConfig) -> None:
    needed = METHODS[preset].store
    without: dict[str, Any] = {"attention": "none"} if "attention" in needed else {}
    with pytest.raises(InputError) as error:
        load_run_config(write("bare", store=without, train={"preset": preset, "losses": {}}), "run")
    assert "\n" not in str(error.value)
    assert "train.losses" in str(error.value) and ("store" in str(error.value))


def test_a_plan_shows_what_a_preset_set() -> None:
    objective = planned_objective(config(preset="compodistill", losses={"supervised": 0.5}))
    assert objective is not None
    assert objective_line(objective) == (
        "losses    preset compodistill: supervised 0.5, attention 7, logit 1, logit_divergence forward_kl, "
        "attention_layers 30%-70%, attention_form cosine, attention_heads mean"
    )
    assert json.loads(json.dumps(objective))["settings"]["attention_form"] == "cosine"
    assert planned_objective(None) is None


@pytest.mark.parametrize("preset", ["paper", "compodistill"])
def test_align_kd_and_a_band_of_layers_train_from_one_store(preset: str, write: WriteConfig) -> None:
    """Each as from the store that has only its own attention, to the last bit."""
    band = {"layers": "0%-100%", "pairs": "all", "heads": "mean", "codec": "float32"}
    train = {"preset": preset, "losses": {}}
    both = write("both", store={"attention": {**band, "first_layer": "float32"}}, train=train)
    own_attention = "float32" if preset == "paper" else band
    own = write("own", store={"attention": own_attention}, train=train)
    lines = []
    for path in (both, own):
        dumped(path)
        lines.append(trained(path))
    terms = load_run_config(both, "run").train.losses.weights  # type: ignore[union-attr]
    assert [{name: line[name] for name in terms} for line in lines[0]] == [
        {name: line[name] for name in terms} for line in lines[1]
    ]
    assert lines[0][0]["attention"] > 0
    store = load_run_config(both, "run").store.path
    shown = CliRunner().invoke(main, ["shards", "show", str(store), "--json"])
    layers = json.loads(shown.stdout)["attention_layers"]
    assert {one["target"] for one in layers} == {"attention", *NAMES.values()}
    assert CliRunner().invoke(main, ["shards", "verify", str(store), "--deep"]).exit_code == 0


def test_a_plan_names_the_attention_that_a_preset_leaves(write: WriteConfig) -> None:
    section = {"layers": [1], "pairs": "tqv", "heads": "mean", "first_layer": "float16"}
    store = {"attention": section, "vision_all": "none", "vision_top": "none", "logits": FULL}
    left = {}
    for name, losses in (("first", {}), ("band", {"attention_layers": {0: 1}})):
        weights = {"attention": 1.0, "vision_all": 0.0, "vision_top": 0.0}
        path = write(name, store=store, train={"preset": "paper", "losses": {**weights, **losses}})
        shown = CliRunner().invoke(main, ["plan", str(path)]).stdout
        left[name] = shown.split("no loss uses ")[1].split(";")[0]
    assert left == {"first": "attention of layer 1", "band": "attention of layer 0"}
