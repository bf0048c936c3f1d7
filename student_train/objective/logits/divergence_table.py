"""The table of the divergences of the logit loss. Settings, checks of stores and documents are derived from it.

A divergence is added here: its name in `LogitDivergence` and its entry in `DIVERGENCES`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, get_args

from alignkd.student_train.losses.logits.divergences import taid
from alignkd.student_train.losses.logits.divergences.akl import akl
from alignkd.student_train.losses.logits.divergences.bild import bild
from alignkd.student_train.losses.logits.divergences.cosine import cosine_probs
from alignkd.student_train.losses.logits.divergences.f_divergences import MIXED, SUPPORT, named_divergence
from alignkd.student_train.losses.logits.divergences.ofa import ofa
from alignkd.student_train.losses.logits.divergences.sinkhorn import sinkhorn
from alignkd.student_train.losses.logits.logit_loss import per_outcome
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.objective.logits.divergence_settings import BildConfig, SinkhornConfig
from alignkd.student_train.objective.logits.taid_schedule import TaidConfig, TaidForm

LogitDivergence = Literal[
    "reverse_kl",
    "forward_kl",
    "js",
    "skewed_reverse_kl",
    "skewed_forward_kl",
    "support_reverse_kl",
    "support_forward_kl",
    "support_js",
    "tvd",
    "cosine_probs",
    "ofa",
    "akl",
    "bild",
    "sinkhorn",
    "taid",
]
# The form of a store's logits: their kind, or `unknown tail` for entries without the mass of all others.
StoredLogits = Literal["full", "hidden", "topk", "nucleus", "unknown tail", "sampled"]
# exact: the divergence over the whole vocabulary. lower bound: of it. bounded error: `note` has the bound. kept tokens:
# by its own definition a function of the tokens that a position keeps. estimate: unbiased. approximate: none of these.
Accuracy = Literal["exact", "lower bound", "bounded error", "kept tokens", "estimate", "approximate"]

WHOLE: tuple[StoredLogits, ...] = ("full", "hidden")
BUCKETED: tuple[StoredLogits, ...] = ("topk", "nucleus")


class DivergenceSettings(Protocol):
    """The settings of `LossConfig` from which a divergence is made; None stands for the default."""

    @property
    def logit_mixture(self) -> float | None:
        """See `LossConfig`."""

    @property
    def ofa_gamma(self) -> float | None:
        """See `LossConfig`."""

    @property
    def akl_head(self) -> float | None:
        """See `LossConfig`."""

    @property
    def bild(self) -> BildConfig | None:
        """See `LossConfig`."""

    @property
    def sinkhorn(self) -> SinkhornConfig | None:
        """See `LossConfig`."""

    @property
    def taid(self) -> TaidConfig | None:
        """See `LossConfig`."""


@dataclass(frozen=True, kw_only=True)
class DivergenceEntry:
    """One divergence of the logit loss.

    Attributes:
        formula: in p of the teacher and q of the student, for documents.
        source: arXiv number, or the paper by its name.
        accuracy: what its value is on each kind of stored logits; a kind that is not there is refused.
        make: the divergence with its settings.
        settings: the keys of `train.losses` that it uses; others of these keys are refused.
        tempered: the kinds on which `losses.temperature` may differ from 1.
        own_temperature: the key of `train.losses` that takes the place of `losses.temperature`.
        note: what documents say about the accuracy in addition.
        limit: why settings do not fit a kind of `accuracy`, as `REASON; NEXT STEP`; None if they do.
    """

    formula: str
    source: str
    accuracy: Mapping[StoredLogits, Accuracy]
    make: Callable[[DivergenceSettings], RowDivergence]
    settings: tuple[str, ...] = ()
    tempered: tuple[StoredLogits, ...] = WHOLE
    own_temperature: str | None = None
    note: str = ""
    limit: Callable[[DivergenceSettings, StoredLogits], str | None] = field(default=lambda settings, stored: None)


def _per_outcome(name: LogitDivergence, settings: DivergenceSettings) -> RowDivergence:
    return per_outcome(named_divergence(name, settings.logit_mixture), on_support=name in SUPPORT)


def _on_outcomes(
    name: LogitDivergence, formula: str, source: str, more: Mapping[StoredLogits, Accuracy] | None = None
) -> DivergenceEntry:
    """An f-divergence: merging outcomes never increases it, so it is a lower bound on kept tokens and a bucket."""
    return DivergenceEntry(
        formula=formula,
        source=source,
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys(BUCKETED, "lower bound"), **(more or {})},
        make=partial(_per_outcome, name),
        settings=("logit_mixture",) if name in MIXED else (),
    )


def _on_support(name: LogitDivergence, formula: str) -> DivergenceEntry:
    return DivergenceEntry(
        formula=f"{formula} of the kept tokens, both sides renormalised over them",
        source="own",
        accuracy=dict.fromkeys((*BUCKETED, "unknown tail"), "kept tokens"),
        make=partial(_per_outcome, name),
        settings=("logit_mixture",) if name in MIXED else (),
        tempered=(*BUCKETED, "unknown tail"),
    )


def _bild(settings: DivergenceSettings) -> RowDivergence:
    own = settings.bild or BildConfig()
    return bild(own.k, own.temperature, student_led=own.lead == "both")


def _limit_of_bild(settings: DivergenceSettings, stored: StoredLogits) -> str | None:
    own = settings.bild or BildConfig()
    if own.lead == "both" and stored not in WHOLE:
        return (
            "which do not have the student's most probable tokens; set losses.bild.lead to 'teacher' or dump 'hidden' "
            "or 'full' logits"
        )
    return None


def _sinkhorn(settings: DivergenceSettings) -> RowDivergence:
    own = settings.sinkhorn or SinkhornConfig()
    return sinkhorn(own.temperature, own.epsilon, own.iterations, own.positions)


def _limit_of_sinkhorn(settings: DivergenceSettings, stored: StoredLogits) -> str | None:
    own = settings.sinkhorn or SinkhornConfig()
    if own.temperature != 1.0 and stored not in WHOLE:
        return (
            f"which fit losses.sinkhorn.temperature 1.0 only, found {own.temperature}; set it to 1.0 or dump 'hidden' "
            "or 'full' logits"
        )
    return None


def _taid_form(settings: DivergenceSettings) -> TaidForm:
    return (settings.taid or TaidConfig()).form


def _limit_of_taid(settings: DivergenceSettings, stored: StoredLogits) -> str | None:
    form = _taid_form(settings)
    if form == "full" and stored in BUCKETED:
        return (
            "and losses.taid.form 'full' mixes all tokens; set it to 'bucketed', which mixes the kept tokens and one "
            "bucket (another loss, no bound of the full one), or dump 'hidden' or 'full' logits"
        )
    if form == "bucketed" and stored in WHOLE:
        return "and losses.taid.form 'bucketed' is for kept tokens; set it to 'full'"
    return None


DIVERGENCES: dict[LogitDivergence, DivergenceEntry] = {
    "reverse_kl": _on_outcomes("reverse_kl", "KL(q, p)", "Align-KD, equation 6"),
    "forward_kl": _on_outcomes("forward_kl", "KL(p, q)", "arXiv 1503.02531", {"sampled": "estimate"}),
    "js": _on_outcomes("js", "b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q", "arXiv 2306.13649"),
    "skewed_reverse_kl": _on_outcomes("skewed_reverse_kl", "KL(q, a q + (1 - a) p)", "arXiv 2402.03898"),
    "skewed_forward_kl": _on_outcomes("skewed_forward_kl", "KL(p, a p + (1 - a) q)", "arXiv 2402.03898"),
    "support_reverse_kl": _on_support("support_reverse_kl", "KL(q, p)"),
    "support_forward_kl": _on_support("support_forward_kl", "KL(p, q)"),
    "support_js": _on_support("support_js", "js"),
    "tvd": _on_outcomes("tvd", "1/2 sum |p - q|", "arXiv 2307.15190"),
    "cosine_probs": DivergenceEntry(
        formula="1 - p·q / (|p| |q|)",
        source="arXiv 2603.21426",
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys(BUCKETED, "bounded error")},
        make=lambda settings: cosine_probs(),
        note="the error is at most 2 |p_tail| / |p|",
    ),
    "ofa": DivergenceEntry(
        formula="-((1 + p_y)^g - 1) log q_y - sum over c != y of p_c log q_c, with the label y",
        source="arXiv 2310.19444",
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys(BUCKETED, "lower bound")},
        make=lambda settings: ofa(1.0 if settings.ofa_gamma is None else settings.ofa_gamma),
        settings=("ofa_gamma",),
        note="not 0 for q = p",
    ),
    "akl": DivergenceEntry(
        formula="(g_head KL(p, q) + g_tail KL(q, p)) / (g_head + g_tail), g the sums of |p - q|",
        source="arXiv 2404.02657",
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys(BUCKETED, "approximate")},
        make=lambda settings: akl(0.5 if settings.akl_head is None else settings.akl_head),
        settings=("akl_head",),
        note="both KL are lower bounds, their weights are those of kept tokens and bucket",
    ),
    "bild": DivergenceEntry(
        formula="KL of the softmax of differences of the k largest logits",
        source="arXiv 2406.13555",
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys((*BUCKETED, "unknown tail"), "kept tokens")},
        make=_bild,
        settings=("bild",),
        own_temperature="bild.temperature",
        note="`lead: teacher` is exact where a position keeps the k most probable tokens; `both` needs all tokens",
        limit=_limit_of_bild,
    ),
    "sinkhorn": DivergenceEntry(
        formula="sum of P_ij |q_i - p_j|_1 over pairs of positions, P from Sinkhorn's iterations",
        source="arXiv 2402.17110",
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys(BUCKETED, "approximate")},
        make=_sinkhorn,
        settings=("sinkhorn",),
        own_temperature="sinkhorn.temperature",
        note="not 0 for q = p; each |q_i - p_j|_1 is a lower bound, the sum is none",
        limit=_limit_of_sinkhorn,
    ),
    "taid": DivergenceEntry(
        formula="KL(m, q) with m = softmax((1 - t) ln q + t ln p), m without gradient; t rises from step to step",
        source="arXiv 2501.16937",
        accuracy={**dict.fromkeys(WHOLE, "exact"), **dict.fromkeys(BUCKETED, "approximate")},
        make=lambda settings: taid.BUCKETED if _taid_form(settings) == "bucketed" else taid.FULL,
        settings=("taid",),
        note="kept tokens need `form: bucketed`, whose bucket has more mass in m than its tokens would have: no bound",
        limit=_limit_of_taid,
    ),
}
assert {*DIVERGENCES} == {*get_args(LogitDivergence)}, "each name has an entry"
# the keys of `train.losses` that belong to some divergences only
SETTINGS = tuple(dict.fromkeys(key for entry in DIVERGENCES.values() for key in entry.settings))


def takers(stored: StoredLogits) -> list[LogitDivergence]:
    """The divergences that accept a kind of stored logits."""
    return [name for name, entry in DIVERGENCES.items() if stored in entry.accuracy]


def users(setting: str) -> list[LogitDivergence]:
    """The divergences that use a key of `train.losses`."""
    return [name for name, entry in DIVERGENCES.items() if setting in entry.settings]
