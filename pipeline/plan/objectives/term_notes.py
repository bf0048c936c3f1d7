"""Formulas and sources of the terms of the objective, for documents; those of divergences are in their own table."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TermNote:
    """What a document contains about a term.

    Attributes:
        formula: in words and symbols; teacher t or p, student s or q.
        source: paper with its arXiv number.
        stores: what it needs from a store: the keys of the section `store`, each with its value; several are
            alternatives. Empty: nothing beside the labels.
        note: when it is exact, and what it cannot use.
    """

    formula: str
    source: str
    stores: tuple[tuple[str, dict[str, object]], ...] = ()
    note: str


_ALIGN_KD = "Align-KD, arXiv 2412.01282"
_OWN = "exact up to the codec; the kind of logits does not matter"
_BAND = {"layers": "30%-70%", "heads": "mean", "codec": "float16"}
TERM_NOTES: dict[str, TermNote] = {
    "supervised": TermNote(
        formula="-ln q(label)", source="", note="needs no teacher; every kind of logits, also `none`"
    ),
    "attention": TermNote(
        formula="squared error, KL with a rest outcome, or 1 - cosine of attention, by `attention_form`",
        source=f"{_ALIGN_KD}; CompoDistill, arXiv 2510.12184",
        stores=(
            ("attention: sqrt_u8", {"attention": "sqrt_u8"}),
            ("attention: float16", {"attention": "float16"}),
            ("band 30%-70%, mean head, vqv, float16", {"attention": {**_BAND, "pairs": "vqv"}}),
            ("the same, all", {"attention": {**_BAND, "pairs": "all"}}),
            ("attention: stem", {}),
        ),
        note=_OWN,
    ),
    "vision_all": TermNote(
        formula="mean squared error of all vision embeddings, the teacher's through an adapter",
        source=_ALIGN_KD,
        stores=(
            ("vision_all: int8_channel", {"vision_all": "int8_channel"}),
            ("vision_all: bfloat16", {"vision_all": "bfloat16"}),
        ),
        note=_OWN,
    ),
    "vision_top": TermNote(
        formula="the same of the 16 vision tokens with the highest focus score",
        source=_ALIGN_KD,
        stores=(("vision_top: int8_channel", {"vision_top": "int8_channel"}),),
        note=_OWN,
    ),
    "effect": TermNote(
        formula="1/4 |(p - p without the evidence) - (q - q without the evidence)|_1",
        source="MCD, arXiv 2609.39920",
        stores=(("counterfactual: {remove: focus}", {"counterfactual": {"remove": "focus"}}),),
        note="exact on the stored tokens and one bucket, a lower bound over the vocabulary; any kind of logits",
    ),
    "keep": TermNote(
        formula="1/2 |p - q with only the evidence kept|_1",
        source="MCD, arXiv 2609.39920",
        stores=(("counterfactual: {remove: focus}", {"counterfactual": {"remove": "focus"}}),),
        note="as `effect`",
    ),
    "relation": TermNote(
        formula="1 - cosine of the matrices of cosines of all pairs of vision tokens",
        source="LLaVA-KD, arXiv 2410.16236",
        stores=(
            ("vision_relations: int8_unit", {"vision_relations": "int8_unit"}),
            ("vision_relations: float16", {"vision_relations": "float16"}),
            ("vision_states: int8_group", {"vision_states": "int8_group"}),
        ),
        note=_OWN,
    ),
    "visual_logit": TermNote(
        formula="KL(p, q) at vision positions",
        source="LLaVA-KD, arXiv 2410.16236",
        stores=(
            ("vision_states: int8_group", {"vision_states": "int8_group"}),
            ("vision_states: bfloat16", {"vision_states": "bfloat16"}),
        ),
        note=f"{_OWN}; the store contains the teacher's lm_head",
    ),
    "nd": TermNote(
        formula="1 - s·c_y / max(|s|, |t|), with the label's class mean c_y",
        source="arXiv 2305.17007",
        stores=(("state_norms: float16", {"state_norms": "float16"}), ("logits.kind: hidden", {})),
        note=f"{_OWN}; class means by `alignkd shards centres`, from a store with `hidden` logits",
    ),
    "vsd": TermNote(
        formula="KL(q, p) at vision positions",
        source="EM-KD, arXiv 2511.21106",
        stores=(
            ("vision_states: int8_group", {"vision_states": "int8_group"}),
            ("vision_states: bfloat16", {"vision_states": "bfloat16"}),
        ),
        note=f"{_OWN}; the store contains the teacher's lm_head",
    ),
    "vlad": TermNote(
        formula="smooth L1 of the cosines of vision and text states",
        source="EM-KD, arXiv 2511.21106",
        stores=(
            ("vision_text_affinity: int8_unit", {"vision_text_affinity": "int8_unit"}),
            ("vision_text_affinity: float16", {"vision_text_affinity": "float16"}),
        ),
        note=_OWN,
    ),
    "preference": TermNote(
        formula="DPO, IPO, KTO of a pair or squared difference of margins, by `train.preference`",
        source="LLaVA-MoD, arXiv 2408.15881; arXiv 2305.18290, 2310.12036, 2010.02666",
        stores=(("sequence_logprob (always there)", {}),),
        note="exact with every kind of logits, also `none`; data with pairs of answers",
    ),
}
