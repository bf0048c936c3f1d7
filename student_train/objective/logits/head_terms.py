"""All terms on the student's logits together, and whether one pass over a chunk of logits serves several.

Labels and a truncated teacher's entries are a few tokens per position: cross-entropy and logit loss then share the
pass of `losses/logits/outcomes.py`. A teacher's full logits are compared token by token, so each term reads the logits
itself. So it does where the vocabulary is padded: cross-entropy is over all columns, the logit loss over the
tokenizer's.
"""

from collections.abc import Mapping

from torch import Tensor

from alignkd.student_train.data.targets import FullTargets, HiddenTargets, SampledTargets, TruncatedTargets
from alignkd.student_train.losses.fused_head import JointTerms
from alignkd.student_train.losses.logits.logit_loss import bucketed_loss, support_loss
from alignkd.student_train.losses.logits.outcomes import outcomes
from alignkd.student_train.losses.logits.sampled_logit import loss_of_draws
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.supervised import cross_entropy
from alignkd.student_train.objective.logits.logit_terms import weighted_labels
from alignkd.student_train.objective.term import HeadInputs
from alignkd.student_train.objective.terms import TERMS

# The terms that share one pass, unless the teacher's logits are full.
SHARED = ("supervised", "logit")


def head_terms(inputs: HeadInputs, weights: Mapping[str, float]) -> JointTerms:
    """The terms on logits that have a weight, in the order of `weights`."""
    own = {name: TERMS[name].on_logits for name in weights}
    names = [name for name, term in own.items() if term is not None]
    apart = isinstance(inputs.targets, FullTargets | HiddenTargets) or inputs.num_tokens is not None
    shared = frozenset() if "logit" in names and apart else frozenset(names) & {*SHARED}
    alone = {name: make(inputs) for name, make in own.items() if make is not None and name not in shared}

    def terms_of_chunk(logits_nV: Tensor, chunk: slice) -> list[Tensor]:
        found = {name: term(logits_nV, chunk) for name, term in alone.items()}
        if shared:
            found |= _shared_terms(inputs, shared, logits_nV, chunk, overwrite=not alone)
        values = [found[name] for name in names]
        return values if inputs.kept_N is None else [value * inputs.kept_N[chunk] for value in values]

    return JointTerms(terms=terms_of_chunk, weights=[weights[name] for name in names])


def _shared_terms(
    inputs: HeadInputs, shared: frozenset[str], logits_nV: Tensor, chunk: slice, *, overwrite: bool
) -> dict[str, Tensor]:
    teacher = None
    if "logit" in shared:
        assert isinstance(inputs.targets, TruncatedTargets | SampledTargets), inputs.targets
        teacher = inputs.targets.distribution(chunk)
    student = outcomes(
        logits_nV,
        labels_N=inputs.labels_N[chunk] if "supervised" in shared else None,
        ids_NK=None if teacher is None else teacher.ids_NK,
        kept_NK=teacher.kept_NK if isinstance(teacher, TruncatedDistribution) else None,
        overwrite=overwrite,
    )
    found = {}
    if "supervised" in shared:
        found["supervised"] = weighted_labels(inputs, cross_entropy(student).parts, chunk)
    if isinstance(teacher, TruncatedDistribution) and inputs.on_support:
        found["logit"] = support_loss(student, teacher, inputs.divergence, inputs.temperature).parts
    elif isinstance(teacher, TruncatedDistribution):
        found["logit"] = bucketed_loss(student, teacher, inputs.divergence).parts
    elif teacher is not None:
        found["logit"] = loss_of_draws(student, teacher).parts
    return found
