"""All terms on the student's logits together, and whether one pass over a chunk of logits serves several.

Labels and a truncated teacher's entries are a few tokens per position: cross-entropy and logit loss then share the
pass of `losses/logits/outcomes.py`. A teacher's full logits are compared token by token, so each term reads the logits
itself. So it does where a divergence needs the student at further tokens, and where the vocabulary is padded:
cross-entropy is over all columns, the logit loss over the tokenizer's.
"""

from collections.abc import Mapping

from torch import Tensor

from alignkd.student_train.data.targets import FullTargets, HiddenTargets, SampledTargets, TruncatedTargets
from alignkd.student_train.losses.fused_head import JointTerms
from alignkd.student_train.losses.logits.logit_loss import truncated_loss
from alignkd.student_train.losses.logits.outcomes import outcomes
from alignkd.student_train.losses.logits.sampled_logit import loss_of_draws
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.supervised import cross_entropy
from alignkd.student_train.objective.logits.logit_terms import weighted_labels, with_figures
from alignkd.student_train.objective.term import HeadInputs
from alignkd.student_train.objective.terms import TERMS

# The terms that share one pass, unless the teacher's logits are full.
SHARED = ("supervised", "logit")


def head_terms(inputs: HeadInputs, weights: Mapping[str, float]) -> JointTerms:
    """The terms on logits that have a weight, in the order of `weights`; then the figures of the logit loss."""
    own = {name: TERMS[name].on_logits for name in weights}
    names = [name for name, term in own.items() if term is not None]
    all_columns = isinstance(inputs.targets, FullTargets | HiddenTargets) or inputs.divergence.whole_student is not None
    apart = all_columns or inputs.num_tokens is not None
    shared = frozenset() if "logit" in names and apart else frozenset(names) & {*SHARED}
    alone = {name: make(inputs) for name, make in own.items() if make is not None and name not in shared}

    figures = inputs.divergence.figures if "logit" in names else ()

    def terms_of_chunk(logits_nV: Tensor, chunk: slice) -> list[Tensor]:
        found = {name: term(logits_nV, chunk) for name, term in alone.items()}
        if shared:
            found |= _shared_terms(inputs, shared, logits_nV, chunk, overwrite=not alone)
        values, further = [found[name] for name in names], list[Tensor]()
        place = names.index("logit") if "logit" in found else 0
        if figures:
            values[place], *further = values[place].unbind()
        if "logit" in found and inputs.logit_factors_N is not None:
            values[place] = values[place] * inputs.logit_factors_N[chunk]
        values += further
        return values if inputs.kept_N is None else [value * inputs.kept_N[chunk] for value in values]

    return JointTerms(terms=terms_of_chunk, weights=[weights[name] for name in names], num_figures=len(figures))


def _shared_terms(
    inputs: HeadInputs, shared: frozenset[str], logits_nV: Tensor, chunk: slice, *, overwrite: bool
) -> dict[str, Tensor]:
    teacher = None
    if "logit" in shared:
        assert isinstance(inputs.targets, TruncatedTargets | SampledTargets), inputs.targets
        teacher = inputs.targets.distribution(chunk)
    labels_n = inputs.labels_N[chunk]
    of_divergence = inputs.divergence if isinstance(teacher, TruncatedDistribution) else None
    uses_labels = of_divergence is not None and of_divergence.uses_labels
    student = outcomes(
        logits_nV,
        labels_N=labels_n if "supervised" in shared or uses_labels else None,
        ids_NK=None if teacher is None else teacher.ids_NK,
        kept_NK=teacher.kept_NK if isinstance(teacher, TruncatedDistribution) else None,
        squares=of_divergence is not None and of_divergence.uses_squares,
        overwrite=overwrite,
    )
    found = {}
    if "supervised" in shared:
        found["supervised"] = weighted_labels(inputs, cross_entropy(student).parts, chunk)
    if isinstance(teacher, TruncatedDistribution):
        found["logit"] = with_figures(
            truncated_loss(
                inputs.divergence,
                student,
                teacher,
                temperature=inputs.temperature,
                labels_N=labels_n,
                step_values=inputs.step_values,
            )
        )
    elif teacher is not None:
        found["logit"] = loss_of_draws(student, teacher).parts
    return found
