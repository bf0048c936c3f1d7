"""The table of all loss terms (eq. 7). Settings, presets, checks, counts, metrics and reports are derived from it."""

from alignkd.student_train.objective.attention.term import attention_elements, attention_term
from alignkd.student_train.objective.counterfactual_terms import (
    EFFECT,
    KEEP,
    counterfactual_elements,
    effect_term,
    keep_term,
)
from alignkd.student_train.objective.logits.logit_terms import label_term, logit_term
from alignkd.student_train.objective.norm_direction_term import nd_elements, nd_term
from alignkd.student_train.objective.preference.settings import PREFERENCE
from alignkd.student_train.objective.preference.term import preference_elements, preference_term
from alignkd.student_train.objective.term import Preset, Term
from alignkd.student_train.objective.vision.em_kd_terms import vlad_elements, vlad_term, vsd_elements, vsd_term
from alignkd.student_train.objective.vision.embedding_terms import (
    vision_all_elements,
    vision_all_term,
    vision_top_elements,
    vision_top_term,
)
from alignkd.student_train.objective.vision.logit_term import visual_logit_elements, visual_logit_term
from alignkd.student_train.objective.vision.relation_term import relation_elements, relation_term

# By the name that they have in settings, metrics and TensorBoard.
TERMS: dict[str, Term] = {
    "supervised": Term(
        meaning="weight of cross-entropy with the labels.",
        weight=1.0,
        presets=("paper", "supervised"),
        on_logits=label_term,
    ),
    "attention": Term(
        meaning="weight of the loss on attention, by default the first layer's from text queries to vision tokens.",
        weight=1.0,
        presets=("paper",),
        target="attention",
        positional=True,
        adapter="attn_adapter",
        compute=attention_term,
        elements=attention_elements,
    ),
    "vision_all": Term(
        meaning="weight of the loss on all vision embeddings.",
        weight=1.0,
        presets=("paper",),
        target="vision_all",
        positional=True,
        adapter="proj_adapter",
        compute=vision_all_term,
        elements=vision_all_elements,
    ),
    "vision_top": Term(
        meaning="weight of the loss on the embeddings of the vision tokens that the teacher attends to most.",
        weight=0.1,
        presets=("paper",),
        target="vision_top",
        positional=True,
        adapter="proj_adapter",
        compute=vision_top_term,
        elements=vision_top_elements,
    ),
    "logit": Term(
        meaning="weight of the loss on the distribution at supervised positions.",
        weight=1.0,
        presets=("paper",),
        target="logits",
        on_logits=logit_term,
    ),
    "relation": Term(
        meaning="weight of the loss on the relations of vision tokens, LLaVA-KD's RDist.",
        weight=0.0,
        target="vision_relations",
        positional=True,
        compute=relation_term,
        elements=relation_elements,
    ),
    "visual_logit": Term(
        meaning="weight of the loss on the distribution at vision positions, LLaVA-KD's MDist.",
        weight=0.0,
        target="vision_states",
        positional=True,
        teacher_head=True,
        compute=visual_logit_term,
        elements=visual_logit_elements,
    ),
    "nd": Term(
        meaning="weight of the loss on norm and direction of the last hidden states at supervised positions.",
        weight=0.0,
        target="state_norms",
        adapter="state_adapter",
        compute=nd_term,
        elements=nd_elements,
    ),
    "vsd": Term(
        meaning="weight of the reverse KL divergence between distributions at vision tokens, EM-KD's VSD.",
        weight=0.0,
        target="vision_states",
        positional=True,
        teacher_head=True,
        compute=vsd_term,
        elements=vsd_elements,
    ),
    "vlad": Term(
        meaning="weight of the loss on the cosines between text queries and vision tokens, EM-KD's VLAD.",
        weight=0.0,
        target="vision_text_affinity",
        positional=True,
        compute=vlad_term,
        elements=vlad_elements,
    ),
    EFFECT: Term(
        meaning="weight of the loss on the change of the distribution when the evidence in the image is replaced.",
        weight=0.0,
        target="counterfactual",
        positional=True,
        compute=effect_term,
        elements=counterfactual_elements,
    ),
    KEEP: Term(
        meaning="weight of the loss that holds the teacher's distribution where only the evidence is kept.",
        weight=0.0,
        target="counterfactual",
        positional=True,
        compute=keep_term,
        elements=counterfactual_elements,
    ),
    PREFERENCE: Term(
        meaning="weight of the loss on pairs of a chosen and a rejected answer; `train.preference` names the loss.",
        weight=0.0,
        target="preference",
        compute=preference_term,
        elements=preference_elements,
    ),
}


def preset_weights(preset: Preset) -> dict[str, float]:
    """Weight of every term in a preset."""
    return {name: term.weight if preset in term.presets else 0.0 for name, term in TERMS.items()}
