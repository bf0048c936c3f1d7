"""The rows of the demo's table as data: what each of them stores, adds to its loss, and trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from alignkd.student_train.objective.presets import METHODS
from alignkd.vlm.errors import InputError

SUPERVISED, ALIGN_KD = "supervised", "align_kd"


@dataclass(frozen=True, kw_only=True)
class MoreScenes:
    """Scenes of training handwriting in addition to the training set.

    Attributes:
        num: number of pictures.
        answers: `teacher`: the teacher answers their questions (`alignkd generate`); `true`: the right answers.
    """

    num: int
    answers: Literal["teacher", "true"]


@dataclass(frozen=True, kw_only=True)
class Store:
    """What a store holds; rows with equal ones share a store.

    Attributes:
        name: name of its folder.
        keys: keys of the section `store` in addition to those of the preset.
        more: scenes that it holds in addition to the training set.
    """

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict, hash=False)
    more: MoreScenes | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One row of the table.

    Attributes:
        name: name in `report.json` and in paths.
        label: name in tables and pictures.
        store: the store that it trains from.
        losses: keys of `train.losses`; terms that are not named have weight 0, the supervised loss has weight 1.
        train: keys of the section `train` that differ from those of the preset.
        steps: optimiser steps as a multiple of those of the preset.
        partner: name of the row with which its accuracy is compared, seed by seed.
    """

    name: str
    label: str
    store: Store
    losses: Mapping[str, Any] = field(default_factory=dict, hash=False)
    train: Mapping[str, Any] = field(default_factory=dict, hash=False)
    steps: float = 1.0
    partner: str = SUPERVISED


TQV = Store(name="tqv", keys={"attention_pairs": "tqv"})
TQT = Store(name="tqt", keys={"attention_pairs": "tqt"})
VQV = Store(name="vqv", keys={"attention_pairs": "vqv"})
# the attention of two layers, from text queries to vision tokens, in place of that of the first one
_TWO_LAYERS = {"attention": {"layers": [0, 1], "pairs": "tqv", "heads": "all", "codec": "float16"}}
LAYERS = Store(name="layers", keys=_TWO_LAYERS)
LAYERS_MORE = Store(name="layers_more", keys=_TWO_LAYERS, more=MoreScenes(num=3000, answers="teacher"))
TQV_MORE_TRUE = Store(name="tqv_more_true", keys=TQV.keys, more=MoreScenes(num=3000, answers="true"))

_VISION = {"vision_all": 0.3, "vision_top": 0.03}
_LOGIT = {"logit": 0.3}
_ATTENTION = {"attention": 2e4}
_ALL = {**_ATTENTION, **_VISION, **_LOGIT}
_LAYERS = {
    "attention": 30.0,
    "attention_layers": {0: 0, 1: 1},
    "attention_form": "kl",
    "attention_heads": "grouped",
}

# The settings of these were chosen by benchmarks/demo_selection.py.
SUPERVISED_ONLY = Recipe(name=SUPERVISED, label="supervised only", store=TQV, train={"weight_decay": 1.0})
EVERYTHING = Recipe(
    name=ALIGN_KD, label="Align-KD", store=TQV, losses=_ALL, train={"learning_rate": 2e-3, "weight_decay": 0.1}
)
TWO_LAYERS = Recipe(name="layers", label="attention of layers 0 and 1", store=LAYERS, losses=_LAYERS)
TWO_LAYERS_MORE = Recipe(
    name="layers_more",
    label="layers 0 and 1, and 3,000 more scenes",
    store=LAYERS_MORE,
    losses={**_LAYERS, "attention": 2e4, "attention_form": "mse"},
    steps=3.0,
    partner="supervised_more",
)
# Each has the settings of Align-KD, and differs from it in its losses or in the pairs that attention is of.
ABLATION = (
    replace(EVERYTHING, name="logit", label="logits", losses=_LOGIT),
    replace(EVERYTHING, name="logit_attention", label="logits + attention", losses={**_LOGIT, **_ATTENTION}),
    replace(EVERYTHING, name="logit_vision", label="logits + vision", losses={**_LOGIT, **_VISION}),
    # The paper's table 4: other pairs of queries and keys in place of text-query-vision.
    replace(EVERYTHING, name="align_kd_tqt", label="Align-KD, text-query-text", store=TQT),
    replace(EVERYTHING, name="align_kd_vqv", label="Align-KD, vision-query-vision", store=VQV),
)
# the same data and steps without attention
_SUPERVISED_MORE = Recipe(
    name="supervised_more",
    label="supervised, and 3,000 more scenes",
    store=LAYERS_MORE,
    train={"learning_rate": 2e-3, "weight_decay": 0.3},
    steps=3.0,
)
MORE_SCENES = (
    _SUPERVISED_MORE,
    # the upper bound
    replace(_SUPERVISED_MORE, name="supervised_more_true", label="supervised, their true answers", store=TQV_MORE_TRUE),
    TWO_LAYERS_MORE,
)


def _targets_of_all_methods() -> dict[str, Any]:
    """The keys of `store` that the published methods need, together, in the codecs of the demo; and whole logits."""
    found: dict[str, Any] = {}
    for method in METHODS.values():
        for key, value in method.store.items():
            assert found.setdefault(key, value) == value, f"two methods need different {key}"
    return {**found, "attention": {**found["attention"], "codec": "float16"}, "logits": {"kind": "full"}}


# The changes of these were chosen by benchmarks/demo_selection.py --objectives.
_CHOSEN: Mapping[str, Mapping[str, Any]] = {
    "taid": {"train": {"learning_rate": 4e-3}, "losses": {"supervised": 1.0}},  # rate-0.004-with-labels
    "llava_kd": {"train": {"learning_rate": 2e-3}},  # rate-0.002-authors
    "compodistill": {"train": {"learning_rate": 4e-3}, "losses": {"attention": 70.0}},  # rate-0.004-attention-70
    "llava_mod": {"train": {"learning_rate": 4e-3}, "losses": {"supervised": 1.0}},  # rate-0.004-with-labels
    "em_kd": {"train": {"learning_rate": 4e-3}},  # rate-0.004-authors
    "mcd": {"train": {"learning_rate": 4e-3}},  # rate-0.004-authors
    "bild": {"train": {"learning_rate": 2e-3}},  # rate-0.002-authors
    "sinkhorn": {"train": {"learning_rate": 4e-3}},  # rate-0.004-authors
}
_OBJECTIVES = Store(name="objectives", keys=_targets_of_all_methods())


def _of_method(name: str) -> Recipe:
    """The row of a published method: the losses of its preset, on the store of all of them."""
    method = METHODS[name]
    return Recipe(
        name=name,
        label=method.method,
        store=_OBJECTIVES,
        losses={SUPERVISED: 0.0, **method.losses},
        train=method.train,
    )


def _of_divergence(name: Literal["bild", "sinkhorn"], label: str) -> Recipe:
    """The row of a published divergence of answer logits beside the labels."""
    return Recipe(name=name, label=label, store=_OBJECTIVES, losses={"logit": 1.0, "logit_divergence": name})


def _with_chosen(row: Recipe) -> Recipe:
    """The row with its chosen changes."""
    changes = _CHOSEN.get(row.name, {})
    losses, train = ({**getattr(row, name), **changes.get(name, {})} for name in ("losses", "train"))
    return replace(row, losses=losses, train=train)


AUTHORS = (
    *(_of_method(name) for name, method in METHODS.items() if not method.pairs),
    _of_divergence("bild", "BiLD"),
    _of_divergence("sinkhorn", "SinKD"),
)
"""A row for each preset of a published method, and two of divergences alone, with their authors' values."""
OBJECTIVES = tuple(map(_with_chosen, AUTHORS))
"""The same rows with their chosen settings."""
SHOWN = (SUPERVISED_ONLY, EVERYTHING, TWO_LAYERS)
"""The rows of a plain `alignkd demo`."""
ROWS = {
    recipe.name: recipe for recipe in (SUPERVISED_ONLY, *ABLATION, EVERYTHING, TWO_LAYERS, *MORE_SCENES, *OBJECTIVES)
}
"""Every row by its name."""


def named_objectives(names: Iterable[str]) -> tuple[str, ...]:
    """The names of rows of published methods; `all` is all of them.

    Raises:
        InputError: there is no method of a name.
    """
    known, wanted = [row.name for row in OBJECTIVES], [*names]
    if unknown := [name for name in wanted if name not in (*known, "all")]:
        raise InputError(f"--objectives: {', '.join(unknown)} is not among {', '.join(known)}; choose some, or all")
    return tuple(name for name in known if name in wanted or "all" in wanted)


def named_rows(names: Iterable[str]) -> tuple[Recipe, ...]:
    """The rows of these names in the order of `ROWS`; the supervised row is always among them.

    Raises:
        InputError: there is no row of a name.
    """
    wanted = {SUPERVISED, *names}
    if unknown := wanted - ROWS.keys():
        raise InputError(f"--rows: {', '.join(sorted(unknown))} is not among {', '.join(ROWS)}; choose some of these")
    return tuple(recipe for name, recipe in ROWS.items() if name in wanted)
