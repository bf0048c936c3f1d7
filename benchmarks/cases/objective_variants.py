"""The objectives whose step is timed: presets of published methods, and each further term and divergence alone.

Each is compared with plain fine-tuning in the same process, and reads the smallest kind of logits that it accepts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.logits.divergence_table import DIVERGENCES
from alignkd.student_train.objective.presets import METHODS
from alignkd.student_train.objective.terms import TERMS

NUCLEUS, HIDDEN = "nucleus", "hidden"
# written by `alignkd shards centres` from the store with hidden states
CENTRES = "centres.safetensors"
# beside the terms and divergences of Align-KD's step, which `train.py` compares without `--objectives`
MEASURED_BEFORE = ("paper", "supervised")
# pairs of answers
OTHER_DATA = ("preference",)
# on the same outcomes as `js`, or on fewer
SAME_WORK = ("support_", "skewed_")
STORED: Mapping[str, Any] = {"vision_all": "float16", "vision_top": "from_all"}


@dataclass(frozen=True, kw_only=True)
class ObjectiveVariant:
    """One objective.

    Attributes:
        name: of a preset, of a term or of a divergence.
        train: keys of the section `train`; `centres`, if it is there, is the name of a file.
        logits: the kind of logits of its store.
    """

    name: str
    train: Mapping[str, Any]
    logits: str


def objective_variants() -> dict[str, ObjectiveVariant]:
    """All of them by name."""
    found: dict[str, Mapping[str, Any]] = {
        name: {"preset": name} for name, method in METHODS.items() if not method.pairs
    }
    for name, term in TERMS.items():
        if name not in OTHER_DATA and not {*term.presets} & {*MEASURED_BEFORE}:
            more = {"centres": CENTRES} if name == "nd" else {}
            found[f"{name} alone"] = {"preset": "supervised", "losses": {name: 1.0}, **more}
    for divergence in DIVERGENCES:
        if divergence.startswith(SAME_WORK):
            continue
        losses = {"logit": 1.0, "logit_divergence": divergence}
        found[f"logit {divergence}"] = {"preset": "supervised", "losses": losses}
    return {name: _variant(name, train) for name, train in found.items()}


def _variant(name: str, train: Mapping[str, Any]) -> ObjectiveVariant:
    losses = TrainConfig.model_validate({"output": "out", "steps": 1, **train}).losses
    needs_hidden = bool(losses.problems_with(NUCLEUS, "")) or "centres" in train
    return ObjectiveVariant(name=name, train=train, logits=HIDDEN if needs_hidden else NUCLEUS)


def store_of(logits: str) -> dict[str, Any]:
    """Keys of a store that has the targets of every objective, with one kind of logits."""
    found: dict[str, Any] = {"profile": "compact", **STORED}
    for method in METHODS.values():
        found |= method.store
    for key, codec in (("vision_relations", "int8_unit"), ("state_norms", "float32")):
        found.setdefault(key, codec)
    return found if logits == NUCLEUS else {**found, "logits": {"kind": HIDDEN, "dtype": "bfloat16"}}
