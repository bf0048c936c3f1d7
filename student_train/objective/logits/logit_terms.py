"""The terms on the student's logits at N supervised positions, each as its values [n] at one chunk of positions."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from alignkd.student_train.data.targets import FullTargets, HiddenTargets, SampledTargets, TruncatedTargets
from alignkd.student_train.losses.fused_head import HeadTerm
from alignkd.student_train.losses.logits.logit_loss import logit_loss, teacher_logits
from alignkd.student_train.losses.logits.sampled_logit import sampled_logit_loss
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.position_groups import groups_in
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.student_train.objective.term import HeadInputs
from alignkd.vlm.families.family import Head


def label_term(inputs: HeadInputs) -> HeadTerm:
    """Cross-entropy with the labels, times the factor of each position."""
    return lambda student_nV, chunk: weighted_labels(
        inputs, supervised_loss(student_nV, inputs.labels_N[chunk]).parts, chunk
    )


def weighted_labels(inputs: HeadInputs, values_n: Tensor, chunk: slice) -> Tensor:
    """Cross-entropy at the positions of a chunk [n], times the factor of each position."""
    return values_n if inputs.label_factors_N is None else values_n * inputs.label_factors_N[chunk]


def logit_term(inputs: HeadInputs) -> HeadTerm:
    """Eq. 6: the divergence from the teacher's distribution, by the kind of logits that the store keeps.

    Its values are [n], or those of `with_figures`.
    """
    term, num_tokens = _divergence_term(inputs), inputs.num_tokens
    if num_tokens is None:
        return term
    return lambda student_nV, chunk: term(student_nV[:, :num_tokens], chunk)


def _divergence_term(inputs: HeadInputs) -> HeadTerm:
    """The term for student logits of the compared columns alone."""
    targets = inputs.targets
    assert targets is not None
    if isinstance(targets, SampledTargets):  # forward KL at temperature 1: `LossConfig.problems_with`
        return lambda student_nV, chunk: sampled_logit_loss(student_nV, targets.distribution(chunk)).parts
    teacher_of = _teacher_of_chunk(inputs)
    return lambda student_nV, chunk: with_figures(
        logit_loss(
            student_nV,
            teacher_of(chunk),
            divergence=inputs.divergence,
            temperature=inputs.temperature,
            labels_N=inputs.labels_N[chunk],
            step_values=inputs.step_values,
            groups=groups_in(inputs.groups, chunk) if inputs.groups else (),
        )
    )


def with_figures(loss: LossSum) -> Tensor:
    """The parts [n] of a loss, and those of its figures if it has any: [1 + figures, n]."""
    return torch.stack([loss.parts, *loss.figures.values()]) if loss.figures else loss.parts


def _teacher_of_chunk(inputs: HeadInputs) -> Callable[[slice], Tensor | TruncatedDistribution]:
    """The teacher's logits of the compared columns, or its truncated distribution, at a chunk of positions."""
    targets = inputs.targets
    if isinstance(targets, HiddenTargets):
        assert inputs.teacher_head is not None
        states_ND, head = targets.states.decode(), first_rows(inputs.teacher_head, inputs.num_tokens)
        return lambda chunk: teacher_logits(states_ND[chunk], head)
    if isinstance(targets, FullTargets):
        logits_NV = targets.logits.decode()[:, : inputs.num_tokens]
        return lambda chunk: logits_NV[chunk]
    assert isinstance(targets, TruncatedTargets), targets
    distribution = targets.distribution()
    return lambda chunk: distribution[chunk]


def first_rows(head: Head, num_tokens: int | None) -> Head:
    """The head of the tokenizer's own entries, without a copy; None: of all."""
    bias_V = None if head.bias_V is None else head.bias_V[:num_tokens]
    return replace(head, weight_VD=head.weight_VD[:num_tokens], bias_V=bias_V)
