"""The settings that are tried for each row of the demo.

Grids of rows of the demo have `SETTINGS_PER_ROW` settings, among them those that the row had before the selection.
Those of published methods (`objective_grids.py`) have fewer. The other grids are experiments, not rows of the demo: all
their settings are tried with all seeds.
"""

from dataclasses import replace
from itertools import product

from alignkd.pipeline.demo.recipes import (
    EVERYTHING,
    LAYERS,
    ROWS,
    SUPERVISED_ONLY,
    TWO_LAYERS,
    TWO_LAYERS_MORE,
    Recipe,
    Store,
)
from demo_rows.objective_grids import OBJECTIVE_GRIDS
from demo_rows.settings import Grid, Setting

SETTINGS_PER_ROW = 12
GOING_ON = 4
"""Settings of a row that are tried with all seeds."""


_SUPERVISED = tuple(
    Setting(name=f"rate-{rate:g}-decay-{decay:g}", train={"learning_rate": rate, "weight_decay": decay})
    for rate, decay in (
        *product((1e-3, 2e-3, 4e-3, 8e-3), (0.0, 0.1)),
        (2e-3, 0.3),
        (4e-3, 0.3),
        (4e-3, 1.0),
        (6e-3, 0.1),
    )
)
_ALIGN_KD = (
    *(
        Setting(
            name=f"rate-{rate:g}-attention-{weight:g}-adapters-{adapters:g}",
            train={"learning_rate": rate, "adapter_learning_rate": adapters, "weight_decay": 0.0},
            losses={"attention": weight},
        )
        for rate, weight, adapters in (
            *product((2e-3, 4e-3), (2e4, 8e4), (2e-5, 2e-4)),
            (2e-3, 4e4, 2e-5),
            (2e-3, 2e4, 0.0),
            (4e-3, 2e4, 0.0),
        )
    ),
    Setting(
        name="rate-0.002-attention-20000-adapters-2e-05-decay-0.1",
        train={"learning_rate": 2e-3, "adapter_learning_rate": 2e-5, "weight_decay": 0.1},
        losses={"attention": 2e4},
    ),
)

_MSE = {"attention_form": "mse", "attention": 2e4, "attention_heads": "adapter"}
_KL = {"attention_form": "kl", "attention": 10.0, "attention_heads": "grouped"}
_OTHER_TERMS = {"alone": {}, "all-terms": {"logit": 0.3, "vision_all": 0.3, "vision_top": 0.03}}
# Trained adapters of attention make no distributions, so there is no KL with them; it has a second rate instead.
_LAYERS = (
    *(
        Setting(
            name=f"mse-adapters-{adapters:g}-{terms}",
            train={"learning_rate": 4e-3, "adapter_learning_rate": adapters},
            losses={**_MSE, **weights},
        )
        for adapters, (terms, weights) in product((2e-5, 0.0), _OTHER_TERMS.items())
    ),
    *(
        Setting(name=f"kl-rate-{rate:g}-{terms}", train={"learning_rate": rate}, losses={**_KL, **weights})
        for rate, (terms, weights) in product((2e-3, 4e-3), _OTHER_TERMS.items())
    ),
    Setting(
        name="mse-adapters-0-all-terms-decay-0.1",
        train={"learning_rate": 4e-3, "adapter_learning_rate": 0.0, "weight_decay": 0.1},
        losses={**_MSE, **_OTHER_TERMS["all-terms"]},
    ),
    Setting(name="kl-rate-0.004-alone-decay-0.1", train={"learning_rate": 4e-3, "weight_decay": 0.1}, losses=_KL),
    Setting(name="kl-rate-0.008-alone", train={"learning_rate": 8e-3}, losses=_KL),
    Setting(name="kl-30-rate-0.004-alone", train={"learning_rate": 4e-3}, losses={**_KL, "attention": 30.0}),
)
_LAYERS_MORE = (
    *(
        Setting(
            name=f"steps-{steps:g}-rate-{rate:g}-{form['attention_form']}",
            train={"learning_rate": rate},
            losses={**form, "attention_heads": "grouped"},
            steps=steps,
        )
        for steps, rate, form in product((2.0, 3.0), (2e-3, 4e-3), (_MSE, _KL))
    ),
    *(
        Setting(
            name=f"steps-{steps:g}-rate-0.004-kl-30-decay-{decay:g}",
            train={"learning_rate": 4e-3, "weight_decay": decay},
            losses={**_KL, "attention": 30.0},
            steps=steps,
        )
        for steps, decay in product((2.0, 3.0), (0.0, 0.1))
    ),
)
_SUPERVISED_MORE = tuple(
    Setting(
        name=f"steps-{steps:g}-rate-{rate:g}-decay-{decay:g}",
        train={"learning_rate": rate, "weight_decay": decay},
        steps=steps,
    )
    for steps, rate, decay in (
        *product((2.0, 3.0), (2e-3, 4e-3), (0.0, 0.1)),
        *product((2.0, 3.0), (2e-3, 4e-3), (0.3,)),
    )
)
_SCHEDULE = tuple(
    Setting(
        name=f"decay-{'none' if decay is None else decay}-rows-{weights}",
        losses={**_KL, "attention_decay": decay, "attention_row_weights": weights},
    )
    for decay, weights in product((None, 0.6), ("none", "surprise"))
)
# What the further scenes add: the loss and the steps of `layers_more` on the labelled scenes alone; and what the
# teacher's errors cost: the true answers in place of the teacher's.
_LAYERS_LONGER = Grid(
    recipe=replace(TWO_LAYERS_MORE, name="layers_longer", store=LAYERS),
    settings=tuple(Setting(name=f"steps-{steps:g}", steps=steps) for steps in (2.0, 3.0)),
    halving=False,
)
_TRUE_ANSWERS = Grid(
    recipe=replace(ROWS["supervised_more_true"], name="true_answers"),
    settings=(Setting(name="as-supervised-more"),),
    halving=False,
)
# The teacher's distributions alone, without its attention: what changes if 16 of the 36 vision tokens are replaced;
# and, as a control, the distributions at higher temperatures.
_BEHAVIOUR = Recipe(
    name="counterfactual",
    label="counterfactual images",
    store=Store(
        name="counterfactual",
        keys={"counterfactual": {"remove": "focus", "share": 0.44, "entries": 128}},
    ),
    losses={"effect": 1.0, "keep": 1.0},
)
_COUNTERFACTUAL = tuple(
    Setting(name=f"effect-{weight:g}-keep-{weight:g}", losses={"effect": weight, "keep": weight})
    for weight in (1.0, 10.0)
) + tuple(
    Setting(
        name=f"logit-1-temperature-{temperature:g}",
        losses={"logit": 1.0, "temperature": temperature, "effect": 0.0, "keep": 0.0},
    )
    for temperature in (2.0, 4.0)
)

GRIDS: dict[str, Grid] = {
    grid.recipe.name: grid
    for grid in (
        Grid(recipe=SUPERVISED_ONLY, settings=_SUPERVISED),
        Grid(recipe=EVERYTHING, settings=_ALIGN_KD),
        Grid(recipe=TWO_LAYERS, settings=_LAYERS),
        Grid(recipe=TWO_LAYERS_MORE, settings=_LAYERS_MORE),
        Grid(recipe=ROWS["supervised_more"], settings=_SUPERVISED_MORE),
        Grid(
            recipe=replace(TWO_LAYERS, name="layers_schedule", losses=TWO_LAYERS.losses | _KL),
            settings=_SCHEDULE,
            halving=False,
        ),
        _LAYERS_LONGER,
        _TRUE_ANSWERS,
        Grid(recipe=_BEHAVIOUR, settings=_COUNTERFACTUAL, halving=False),
    )
} | OBJECTIVE_GRIDS
"""Grids by the names of their rows."""
