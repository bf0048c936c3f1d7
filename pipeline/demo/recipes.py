"""The rows of the demo's table as data: what each of them stores, adds to its loss, and trains."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkd.vlm.errors import InputError

SUPERVISED, ALIGN_KD = "supervised", "align_kd"


@dataclass(frozen=True, kw_only=True)
class Store:
    """What a store holds; rows with equal ones share a store.

    Attributes:
        name: name of its folder.
        keys: keys of the section `store` in addition to those of the preset.
    """

    name: str
    keys: Mapping[str, Any] = field(default_factory=dict, hash=False)


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

_VISION = {"vision_all": 0.3, "vision_top": 0.03}
_LOGIT = {"logit": 0.3}
_ATTENTION = {"attention": 2e4}
_ALL = {**_ATTENTION, **_VISION, **_LOGIT}

SUPERVISED_ONLY = Recipe(name=SUPERVISED, label="supervised only", store=TQV)
EVERYTHING = Recipe(name=ALIGN_KD, label="Align-KD", store=TQV, losses=_ALL)
ABLATION = (
    Recipe(name="logit", label="logits", store=TQV, losses=_LOGIT),
    Recipe(name="logit_attention", label="logits + attention", store=TQV, losses={**_LOGIT, **_ATTENTION}),
    Recipe(name="logit_vision", label="logits + vision", store=TQV, losses={**_LOGIT, **_VISION}),
    EVERYTHING,
    # The paper's table 4: other pairs of queries and keys in place of text-query-vision.
    Recipe(name="align_kd_tqt", label="Align-KD, text-query-text", store=TQT, losses=_ALL),
    Recipe(name="align_kd_vqv", label="Align-KD, vision-query-vision", store=VQV, losses=_ALL),
)
SHOWN = (SUPERVISED_ONLY, EVERYTHING)
"""The rows of a plain `alignkd demo`."""
ROWS = {recipe.name: recipe for recipe in (SUPERVISED_ONLY, *ABLATION)}
"""Every row by its name, from the fewest losses to the most."""


def named_rows(names: Iterable[str]) -> tuple[Recipe, ...]:
    """The rows of these names in the order of `ROWS`; the supervised row is always among them.

    Raises:
        InputError: there is no row of a name.
    """
    wanted = {SUPERVISED, *names}
    if unknown := wanted - ROWS.keys():
        raise InputError(f"--rows: {', '.join(sorted(unknown))} is not among {', '.join(ROWS)}; choose some of these")
    return tuple(recipe for name, recipe in ROWS.items() if name in wanted)
