"""The loss that a kind of stored logits takes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import (
    FullTargets,
    HiddenTargets,
    LogitTargets,
    RaggedEntries,
    SampledTargets,
    TruncatedTargets,
)
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.logits.logit_terms import logit_term
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head


def test_hidden_states_become_logits_in_the_dtype_of_the_teachers_head() -> None:
    """A bfloat16 teacher gives bfloat16 logits when it is alive; so must its stored states, whatever their dtype."""
    torch.manual_seed(0)
    states_ND, lm_head_VD = torch.randn(4, 12).bfloat16(), torch.randn(30, 12).bfloat16()
    student_NV, chunk = torch.randn(4, 30), slice(1, 3)
    live = logit_loss(student_NV[chunk], (states_ND @ lm_head_VD.T)[chunk]).parts
    for stored_ND in (states_ND, states_ND.float()):
        targets = HiddenTargets(states=EncodedTensor.plain(stored_ND))
        term = logit_term(LossConfig().head_inputs(torch.zeros(4).long(), targets, Head(weight_VD=lm_head_VD)))
        assert torch.equal(term(student_NV[chunk], chunk), live)


N, NUM_TOKENS, TEACHER_COLUMNS, STUDENT_COLUMNS = 5, 20, 26, 23
KEPT = 3


class Teacher:
    """A teacher whose head has more columns than its tokenizer has entries, with scale, bias and soft cap."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.states_ND = torch.randn(N, 8, generator=generator)
        weight_VD, bias_V = (torch.randn(TEACHER_COLUMNS, *size, generator=generator) for size in ((8,), ()))
        self.head = Head(weight_VD=weight_VD, bias_V=bias_V, scale=0.5, softcap=4.0)
        self.logits_NV = 4.0 * torch.tanh(0.5 * (self.states_ND @ weight_VD.T + bias_V) / 4.0)

    @property
    def logprobs_Nn(self) -> Tensor:
        """Of the tokenizer's entries."""
        return self.logits_NV[:, :NUM_TOKENS].log_softmax(-1)

    def targets(self, kind: str) -> LogitTargets:
        """What a store keeps."""
        if kind == "full":
            return FullTargets(logits=EncodedTensor.plain(self.logits_NV))
        if kind == "hidden":
            return HiddenTargets(states=EncodedTensor.plain(self.states_ND))
        sorted_Nn, order_Nn = self.logprobs_Nn.sort(descending=True)
        offsets = torch.arange(N + 1) * KEPT
        ids_E = order_Nn[:, :KEPT].flatten().to(torch.uint32)
        if kind == "topk":
            entries = RaggedEntries(ids_E=ids_E, values_E=sorted_Nn[:, :KEPT].flatten(), offsets=offsets, widest=KEPT)
            return TruncatedTargets(entries=entries, tail_logmass_N=sorted_Nn[:, KEPT:].logsumexp(-1))
        counts_E = torch.tensor([2, 1, 1]).repeat(N).to(torch.uint8)
        entropy_N = -(self.logprobs_Nn.exp() * self.logprobs_Nn).sum(-1)
        return SampledTargets(
            entries=RaggedEntries(ids_E=ids_E, values_E=counts_E, offsets=offsets, widest=KEPT),
            entropy_N=entropy_N,
            num_draws=4,
        )

    def divergence(self, kind: str, student_NV: Tensor) -> Tensor:
        """Forward KL over the tokenizer's entries, by its definition on what is kept."""
        student_Nn, teacher_Nn = student_NV[:, :NUM_TOKENS].log_softmax(-1), self.logprobs_Nn
        if kind in ("full", "hidden"):
            return (teacher_Nn.exp() * (teacher_Nn - student_Nn)).sum()
        order_Nn = teacher_Nn.argsort(descending=True)
        kept_NK, rest = order_Nn[:, :KEPT], order_Nn[:, KEPT:]
        if kind == "sampled":
            drawn_NK = student_Nn.gather(1, kept_NK) * torch.tensor([0.5, 0.25, 0.25])
            return (-drawn_NK.sum(-1) + (teacher_Nn.exp() * -teacher_Nn).sum(-1) * -1).sum()
        both = [
            torch.cat([x.gather(1, kept_NK), x.gather(1, rest).logsumexp(-1, keepdim=True)], dim=1)
            for x in (teacher_Nn, student_Nn)
        ]
        return (both[0].exp() * (both[0] - both[1])).sum()


@pytest.mark.parametrize("kind", ["full", "hidden", "topk", "sampled"])
@pytest.mark.parametrize("positions_at_once", [1, 2, 100])
def test_padded_vocabularies_are_compared_on_the_tokenizers_entries(kind: str, positions_at_once: int) -> None:
    """The logit loss is over them alone, cross-entropy over all columns of the student, as transformers has it."""
    teacher, generator = Teacher(), torch.Generator().manual_seed(1)
    leaves: list[Any] = [
        torch.randn(shape, generator=generator, requires_grad=True) for shape in ((N, 6), (STUDENT_COLUMNS, 6))
    ]
    labels_N, weights = torch.tensor([0, 19, 3, 7, 7]), {"supervised": 1.0, "logit": 0.5}
    losses = LossConfig(logit_divergence="forward_kl")
    inputs = losses.head_inputs(labels_N, teacher.targets(kind), teacher.head, num_tokens=NUM_TOKENS)
    losses_of = fused_head_losses(
        leaves[0],
        Head(weight_VD=leaves[1]),
        head_terms(inputs, weights),
        chunk_bytes=4 * STUDENT_COLUMNS * positions_at_once,
    )
    supervised, logit = (loss.total for loss in losses_of)
    logits_NV = leaves[0] @ leaves[1].T
    expected = functional.cross_entropy(logits_NV, labels_N, reduction="sum"), teacher.divergence(kind, logits_NV)
    torch.testing.assert_close((supervised, logit), expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(supervised + 0.5 * logit, leaves)
    reference = torch.autograd.grad(expected[0] + 0.5 * expected[1], leaves)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
