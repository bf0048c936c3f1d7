"""Step 1: results of a device on random arrays: bytes of codecs, tokens, draws, unsigned integers, losses."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.record.encoded import EncodedArray
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.handoff.block import in_one_copy
from alignkd.student_train.data.targets import RaggedEntries
from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.teacher_dump.targets.device_codecs import StoredParts, encode
from alignkd.teacher_dump.targets.logits.drawing import DRAWN, ENTROPY, draw_tokens, uniforms
from alignkd.teacher_dump.targets.logits.most_likely import _on_device, most_likely_tokens
from alignkd.vlm.families.family import Head
from gpu_steps.check import Check

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CODECS = sorted(
    {name for target in ("attention", "vision_top", "vision_all", "hidden", "unit") for name in codec_names(target)}
)
# relative to the formulas in float64
LOSS_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def run(check: Check) -> None:
    """Check every rule on arrays of several sizes."""
    device = torch.device(check.device)
    torch.manual_seed(0)
    codecs(check, device)
    most_likely(check, device)
    draws(check, device)
    unsigned(check, device)
    for dtype in DTYPES:
        losses(check, device, dtype)


def arrays(tiny: bool) -> Iterator[Tensor]:
    """Numbers of many magnitudes in [0, 1], with rows of zeros and values half way between two steps."""
    for shape in (
        ((1, 1, 1), (5, 4, 150), (3, 70, 4)) if tiny else ((1, 1, 1), (5, 4, 150), (144, 32, 144), (600, 16, 129))
    ):
        values = torch.rand(shape) * 2.0 ** (-20 * torch.rand(shape))
        values[..., : shape[-1] // 3] = (values[..., : shape[-1] // 3] * 4).round() / 4
        values[0] = 0.0
        yield values


def codecs(check: Check, device: torch.device) -> None:
    """Encoding must give the bytes of `alignkd.storage.codecs`, decoding its values."""
    compared = 0
    for values in arrays(check.tiny):
        for name, dtype in ((name, dtype) for name in CODECS for dtype in DTYPES):
            rounded = values.to(dtype)
            expected = get_codec(name).encode(rounded.float().numpy())
            on_host = {part: array.cpu().numpy() for part, array in encode(name, rounded.to(device)).items()}
            target = StoredParts(codec=name, parts=on_host).target(name)
            found = target.parts if isinstance(target, EncodedArray) else {"": target}
            same = all(found[part].tobytes() == array.tobytes() for part, array in expected.items())
            check.expect(same, f"codec {name} of {dtype} {tuple(values.shape)}: other bytes than the store's")
            coded = EncodedTensor(codec=name, parts={part: torch.from_numpy(array) for part, array in expected.items()})
            decoded = in_one_copy(coded, torch.device(device)).decode().float().cpu().numpy()
            same = np.array_equal(decoded, get_codec(name).decode(expected))
            check.expect(same, f"codec {name} {tuple(values.shape)}: decodes to other values than the store's")
            compared += 1
    check.figures["codec_arrays"] = compared


def logits(tiny: bool) -> Tensor:
    """Logits of a teacher with a low entropy, [N, V]."""
    return torch.randn(8, 512) * 4 if tiny else torch.randn(256, 32000) * 4


def most_likely(check: Check, device: torch.device) -> None:
    """The most probable tokens by the algorithm of a GPU and by that of the host."""
    logits_NV = logits(check.tiny)
    labels_N = torch.randint(logits_NV.shape[1], (len(logits_NV),))
    there = _on_device(logits_NV.to(device), labels_N.to(device), 64)
    here = most_likely_tokens(logits_NV, labels_N, 64)
    check.expect(torch.equal(there.ids_NK.cpu(), here.ids_NK), "the most likely tokens differ from the host's")
    for name in ("logprobs_NK", "label_logprob_N", "rest_logmass_N"):
        difference = (getattr(there, name).cpu() - getattr(here, name)).abs().max()
        check.at_most(f"most_likely_{name}", float(difference), 2e-5)


def draws(check: Check, device: torch.device) -> None:
    """Drawn tokens. Logarithms differ in the last bit, so a draw at the border of two tokens may differ."""
    logits_NV = logits(check.tiny)
    uniforms_ND = torch.from_numpy(uniforms(0, 1, len(logits_NV), 50))
    here = draw_tokens(logits_NV, uniforms_ND)
    there = draw_tokens(logits_NV.to(device), uniforms_ND.to(device))
    differing = (there[DRAWN].cpu() != here[DRAWN]).float().mean()
    check.at_most("draws_differing", float(differing), 1e-4)
    check.at_most("draws_entropy", float((there[ENTROPY].cpu() - here[ENTROPY]).abs().max()), 1e-4)


def unsigned(check: Check, device: torch.device) -> None:
    """Indexing and conversion of the unsigned integers in which ids and counts are stored."""
    offsets = torch.tensor([0, 3, 3, 10])
    for ids, counts in ((torch.uint16, torch.uint8), (torch.uint16, torch.uint16), (torch.uint32, torch.uint16)):
        largest = torch.iinfo(ids).max
        ids_E = torch.from_numpy(np.linspace(0, largest, 10).astype(str(ids).removeprefix("torch.")))
        values_E = torch.from_numpy(
            np.linspace(0, torch.iinfo(counts).max, 10).astype(str(counts).removeprefix("torch."))
        )
        entries = RaggedEntries(ids_E=ids_E, values_E=values_E, offsets=offsets, widest=7)
        pairs = zip(entries.padded(), in_one_copy(entries, torch.device(device)).padded(), strict=True)
        check.expect(all(torch.equal(a, b.cpu()) for a, b in pairs), f"entries of {ids} and {counts} differ")


def losses(check: Check, device: torch.device, dtype: torch.dtype) -> None:
    """Losses fused with the output head, values and gradients, against the plain formulas in float64."""
    rows, vocabulary, width = (33, 257, 64) if check.tiny else (777, 32000, 512)
    hidden_ND, head_VD, teacher_NV = (
        torch.randn(rows, width),
        torch.randn(vocabulary, width),
        torch.randn(rows, vocabulary),
    )
    hidden_ND, head_VD = hidden_ND.to(dtype), (head_VD / width**0.5).to(dtype)
    labels_N = torch.randint(vocabulary, (rows,))
    name = str(dtype).removeprefix("torch.")
    try:
        found = fused(hidden_ND.to(device), head_VD.to(device), labels_N.to(device), teacher_NV.to(device))
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        check.figures[f"losses_{name}"] = f"not on this device: {str(error)[:100]}"
        return
    expected = plain(hidden_ND.double(), head_VD.double(), labels_N, teacher_NV.double())
    for part, there, here in zip(("value", "hidden", "head"), found, expected, strict=True):
        difference = float((there.cpu().double() - here).norm() / here.norm())
        check.at_most(f"losses_{name}_{part}", difference, LOSS_BOUNDS[dtype])


def fused(hidden_ND: Tensor, head_VD: Tensor, labels_N: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and the gradients of states and head, in chunks of a few positions."""
    hidden_ND, head_VD = hidden_ND.detach().requires_grad_(), head_VD.detach().requires_grad_()
    terms = [
        WeightedTerm(term=lambda x, chunk: supervised_loss(x, labels_N[chunk]).parts, weight=1.0),
        WeightedTerm(term=lambda x, chunk: logit_loss(x, teacher_NV[chunk]).parts, weight=0.5),
    ]
    losses = fused_head_losses(hidden_ND, Head(weight_VD=head_VD), terms, chunk_bytes=len(head_VD) * 4 * 100)
    return _with_gradients([loss.total for loss in losses], hidden_ND, head_VD)


def plain(hidden_ND: Tensor, head_VD: Tensor, labels_N: Tensor, teacher_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by plain formulas: cross-entropy, and the student's divergence from the teacher."""
    hidden_ND, head_VD = hidden_ND.detach().requires_grad_(), head_VD.detach().requires_grad_()
    student_NV, teacher_NV = (hidden_ND @ head_VD.T).log_softmax(-1), teacher_NV.log_softmax(-1)
    cross_entropy = -student_NV.gather(1, labels_N[:, None]).sum()
    divergence = (student_NV.exp() * (student_NV - teacher_NV)).sum()
    return _with_gradients((cross_entropy, divergence), hidden_ND, head_VD)


def _with_gradients(totals: Sequence[Tensor], hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    (totals[0] + 0.5 * totals[1]).div(len(hidden_ND)).backward()
    assert hidden_ND.grad is not None and head_VD.grad is not None
    return torch.stack([*totals]).detach(), hidden_ND.grad, head_VD.grad
