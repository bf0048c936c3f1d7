"""Presets of `train`: the objectives of published methods with their authors' defaults.

A preset gives every weight of `losses`, and the settings that the method needs. Explicit keys override it. `store`
names the keys of the section `store` that it needs; a run on a store without them is refused by the checks of the
terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkd.student_train.objective.term import Preset
from alignkd.student_train.objective.terms import preset_weights


@dataclass(frozen=True, kw_only=True)
class MethodPreset:
    """The objective of a published method.

    Attributes:
        method: its name.
        source: arXiv number, and the commit of the released code where one was read.
        losses: keys of `train.losses`; weights that are left out are 0.
        train: further keys of `train`. The first one decides: with another value of it, the others are not set.
        store: keys of the section `store` that the method needs, beside a kind of logits.
        pairs: whether the data are pairs of answers (`data.pairs`).
        logits: kinds of stored logits with which it is what its authors define.
        differs: what differs from the paper and why, one sentence or two.
    """

    method: str
    source: str
    losses: Mapping[str, Any]
    train: Mapping[str, Any] = field(default_factory=dict)
    store: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool = False
    logits: tuple[str, ...]
    differs: str


WHOLE_KINDS = ("full", "hidden")
ALL_KINDS = ("full", "hidden", "topk", "nucleus")
METHODS: Mapping[str, MethodPreset] = {
    "taid": MethodPreset(
        method="TAID",
        source="arXiv 2501.16937, code a062892",
        losses={"supervised": 0.0, "logit": 1.0, "logit_divergence": "taid"},
        logits=WHOLE_KINDS,
        differs=(
            "t follows from the loss of the global batch, where the authors' code uses each rank's own. t begins at "
            "0.4; the authors take 0.2 for some pairs of models. The labels have no weight, as there."
        ),
    ),
    "llava_kd": MethodPreset(
        method="LLaVA-KD",
        source="arXiv 2410.16236",
        losses={
            "supervised": 1.0,
            "logit": 1.0,
            "logit_divergence": "forward_kl",
            "visual_logit": 1.0,
            "relation": 0.5,
        },
        store={"vision_states": "int8_group"},
        logits=ALL_KINDS,
        differs=(
            "Relations are cosines of the last hidden states; the paper does not divide by the norms (`relation_rows: "
            "plain`), the authors' repository, which has no training code, takes the projector's output "
            "(`relations_of: projector`). "
            "The paper distils in two of three stages of training; a preset is one stage."
        ),
    ),
    "compodistill": MethodPreset(
        method="CompoDistill",
        source="arXiv 2510.12184, code 8411926",
        losses={
            "supervised": 1.0,
            "logit": 1.0,
            "logit_divergence": "forward_kl",
            "attention": 7.0,
            "attention_layers": "30%-70%",
            "attention_form": "cosine",
            "attention_heads": "mean",
        },
        store={"attention": {"layers": "30%-70%", "pairs": "all", "heads": "mean"}},
        logits=ALL_KINDS,
        differs=(
            "The authors add the losses of 7 layers; alignkd takes the mean over the layers of the band, so the weight "
            "is 7. Their tables name 7 of the layers of the band, which `attention_layers` and "
            "`store.attention.layers` can list. The form is eq. 4 of the paper; their code uses `attention_form: "
            "filtered_cosine`. The teacher's projector is not taken over: the student keeps its own."
        ),
    ),
    "llava_mod": MethodPreset(
        method="LLaVA-MoD",
        source="arXiv 2408.15881, code 481ca57",
        losses={"supervised": 0.0, "logit": 1.0, "logit_divergence": "forward_kl"},
        logits=ALL_KINDS,
        differs=(
            "It is the first stage, in which a dense student imitates the teacher's distributions alone. The student "
            "has no experts. The second stage is `llava_mod_preference`."
        ),
    ),
    "llava_mod_preference": MethodPreset(
        method="LLaVA-MoD, second stage",
        source="arXiv 2408.15881, code 481ca57",
        losses={"supervised": 0.0, "preference": 1.0},
        train={"preference": "kto_pair", "kto_kl_gradient": True},
        pairs=True,
        logits=(*ALL_KINDS, "sampled", "none"),
        differs=(
            "The means of KTO are those of the global batch and at least 0; the authors' code takes those of each "
            "device. As there, they have a gradient."
        ),
    ),
    "em_kd": MethodPreset(
        method="EM-KD",
        source="arXiv 2511.21106",
        losses={
            "supervised": 1.0,
            "logit": 0.5,
            "logit_divergence": "reverse_kl",
            "vsd": 0.25,
            "vlad": 25.0,
        },
        store={"vision_states": "int8_group", "vision_text_affinity": "int8_unit"},
        logits=ALL_KINDS,
        differs=(
            "Vision tokens are paired by place, which needs equally many on both sides; the paper's students have fewer"
            " and are matched (`vision_matching: hungarian`)."
        ),
    ),
    "mcd": MethodPreset(
        method="MCD",
        source="arXiv 2609.39920",
        losses={"supervised": 1.0, "logit": 1.0, "logit_divergence": "forward_kl", "effect": 1.0, "keep": 1.0},
        store={"counterfactual": {"remove": "focus", "share": 0.25, "entries": 128}},
        logits=ALL_KINDS,
        differs=(
            "A removed vision token becomes the token of a neutral image, and one of the two second passes is drawn in "
            "each step. All samples are taken; the paper takes the half on which the teacher changes most, for which "
            "`alignkd shards select --by visual-advantage` chooses samples."
        ),
    ),
}


def preset_losses(preset: Preset) -> dict[str, Any]:
    """Keys of `train.losses` that a preset sets: every weight, and the settings of its method."""
    method = METHODS.get(preset)
    return {**preset_weights(preset), **(method.losses if method is not None else {})}


def preset_train(preset: Preset, given: Mapping[str, Any]) -> dict[str, Any]:
    """Further keys of `train` that a preset sets.

    Args:
        given: the explicit keys of `train`.
    """
    method = METHODS.get(preset)
    if method is None or not method.train:
        return {}
    first, value = next(iter(method.train.items()))
    return dict(method.train) if given.get(first, value) == value else {}
