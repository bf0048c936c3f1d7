"""The student's gradient from the stored distribution of the teacher, against the gradient from the exact one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignkd.storage import LogitsCodec
from alignkd.storage.logits.registry import LogitSizes, logits_codec
from alignkd.student_train.data.collate import logit_targets
from alignkd.student_train.objective.logits.logit_terms import logit_term
from alignkd.student_train.objective.settings import LossConfig
from alignkd.teacher_dump.targets.logits.distribution import draws_of, keep_distribution, stored_logits

LOSSES = LossConfig(supervised=0, attention=0, vision_all=0, vision_top=0, logit=1)


def _nucleus(p: float, least: int, most: int) -> dict[str, Any]:
    return {"kind": "nucleus", "p": p, "min_entries": least, "max_entries": most}


# name in tables -> settings; `compact` and `exact` are the profiles
CHOICES: dict[str, dict[str, Any]] = {
    "topk 8": {"kind": "topk", "top_k": 8},
    "topk 16": {"kind": "topk", "top_k": 16},
    "topk 48": {"kind": "topk", "top_k": 48},
    "topk 64": {"kind": "topk", "top_k": 64},
    "topk 256": {"kind": "topk", "top_k": 256},
    "topk 1024": {"kind": "topk", "top_k": 1024},
    "nucleus 0.9, 8 to 256": _nucleus(0.9, 8, 256),
    "nucleus 0.95, 16 to 512": _nucleus(0.95, 16, 512),
    "nucleus 0.98, 8 to 1024": _nucleus(0.98, 8, 1024),
    "nucleus 0.98, 32 to 1024": _nucleus(0.98, 32, 1024),
    "nucleus 0.99, 32 to 1024": _nucleus(0.99, 32, 1024),
    "nucleus 0.99, 32 to 2048": _nucleus(0.99, 32, 2048),
    "nucleus 0.995, 32 to 2048": _nucleus(0.995, 32, 2048),
    "hidden int8_group": {"kind": "hidden", "dtype": "int8_group"},
    "hidden bfloat16": {"kind": "hidden", "dtype": "bfloat16"},
    "full float16": {"kind": "full"},
}


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Teacher and student at N supervised positions.

    Attributes:
        name: name in tables.
        teacher_ND: the teacher's last hidden states, after the final norm.
        teacher_head_VD: its `lm_head`.
        student_NV: the student's logits.
        labels_N: the next token of each position.
    """

    name: str
    teacher_ND: Tensor
    teacher_head_VD: Tensor
    student_NV: Tensor
    labels_N: Tensor

    @property
    def teacher_NV(self) -> Tensor:
        """The teacher's logits."""
        return self.teacher_ND @ self.teacher_head_VD.T

    @property
    def entropy(self) -> float:
        """Mean over positions of the teacher's entropy, nats."""
        logprobs_NV = self.teacher_NV.log_softmax(-1)
        return float(-(logprobs_NV.exp() * logprobs_NV).sum(-1).mean())


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of one choice of `store.logits` at some positions.

    Attributes:
        num_bytes: stored bytes per position.
        cosine: cosine of the gradient on the student's logits and the exact one, over all positions as one vector.
        mean_cosine: mean of the cosines of single positions.
        lowest_cosine: 5 % quantile of the cosines of single positions.
    """

    choice: str
    positions: str
    entropy: float
    num_bytes: float
    cosine: float
    mean_cosine: float
    lowest_cosine: float


def compare(positions: Positions, choices: Mapping[str, dict[str, Any]]) -> list[Found]:
    """Compare every choice at the same positions, each with the code of dump, store and training."""
    entropy, exact_NV = positions.entropy, _gradient(positions, {"kind": "full", "dtype": "float32"})[0]
    return [_compared(positions, entropy, exact_NV, name, settings) for name, settings in choices.items()]


def _compared(positions: Positions, entropy: float, exact_NV: Tensor, name: str, settings: dict[str, Any]) -> Found:
    found_NV, num_bytes = _gradient(positions, settings)
    each_N = torch.cosine_similarity(found_NV, exact_NV, dim=-1)
    whole = torch.cosine_similarity(found_NV.flatten(), exact_NV.flatten(), dim=0)
    return Found(
        choice=name,
        positions=positions.name,
        entropy=entropy,
        num_bytes=num_bytes,
        cosine=float(whole),
        mean_cosine=float(each_N.mean()),
        lowest_cosine=float(each_N.quantile(0.05)),
    )


def _gradient(positions: Positions, settings: dict[str, Any]) -> tuple[Tensor, float]:
    """The gradient of eq. 6 on the student's logits [N, V], float64, and the stored bytes per position."""
    codec = LogitsCodec.model_validate(settings)
    vocab_size, hidden_size = positions.teacher_head_VD.shape
    arrays = logits_codec(codec, LogitSizes(vocab_size=vocab_size, hidden_size=hidden_size))
    assert arrays is not None
    draws = draws_of(codec, 0, [(0, len(positions.labels_N))])
    kept = keep_distribution(
        lambda hidden_nD: hidden_nD @ positions.teacher_head_VD.T,
        positions.teacher_ND,
        positions.labels_N,
        None if draws is None else torch.from_numpy(draws),
        codec,
    )
    stored = arrays.encode(stored_logits({name: rows.numpy() for name, rows in kept.items()}, codec))
    targets = logit_targets([arrays.decode(stored.__getitem__)])
    student_NV = positions.student_NV.clone().requires_grad_()
    inputs = LOSSES.head_inputs(positions.labels_N, targets, positions.teacher_head_VD)
    total = logit_term(inputs)(student_NV, slice(0, len(student_NV)))
    (gradient_NV,) = torch.autograd.grad(total, student_NV)
    return gradient_NV.double(), sum(part.nbytes for part in stored.values()) / len(student_NV)


def synthetic(entropy: float, *, positions: int, vocabulary: int, hidden_size: int, seed: int = 0) -> Positions:
    """A teacher of about this mean entropy over a Zipf-like vocabulary, and a student that approximates it.

    The teacher's logits are a bias of -ln rank, which is the same at all positions, plus a Gaussian term of the hidden
    state, scaled until their mean entropy is `entropy` nats. The student's logits are 0.8 times those plus noise of one
    nat.
    """
    random = torch.Generator().manual_seed(seed)
    head_VD = torch.randn(vocabulary, hidden_size, generator=random) / hidden_size**0.5
    head_VD[:, 0] = -torch.arange(1, vocabulary + 1).float().log()[torch.randperm(vocabulary, generator=random)]
    states_ND = 2.0 * torch.randn(positions, hidden_size, generator=random)
    states_ND[:, 0] = 1.0
    states_ND *= _sharpness(states_ND @ head_VD.T, entropy)
    teacher_NV = states_ND @ head_VD.T
    labels_N = torch.multinomial(teacher_NV.softmax(-1), 1, generator=random)[:, 0]
    student_NV = 0.8 * teacher_NV + torch.randn(teacher_NV.shape, generator=random)
    return Positions(
        name=f"synthetic, {entropy:g} nats",
        teacher_ND=states_ND,
        teacher_head_VD=head_VD,
        student_NV=student_NV,
        labels_N=labels_N,
    )


def _sharpness(logits_NV: Tensor, entropy: float) -> float:
    """The factor on logits that results in this mean entropy."""
    low, high = 1e-2, 1e2
    for _ in range(30):
        middle = (low * high) ** 0.5
        logprobs_NV = (middle * logits_NV).log_softmax(-1)
        found = float(-(logprobs_NV.exp() * logprobs_NV).sum(-1).mean())
        low, high = (middle, high) if found > entropy else (low, middle)
    return middle


def as_rows(found: Sequence[Found]) -> list[tuple[str, ...]]:
    """Cells of a table, one row per choice: bytes and cosine under each set of positions."""
    names = list(dict.fromkeys(one.positions for one in found))
    by_place = {(one.choice, one.positions): one for one in found}
    header = ("stored as", *(f"{name}: bytes, cosine" for name in names))
    rows = [header]
    for choice in dict.fromkeys(one.choice for one in found):
        cells = (by_place[choice, name] for name in names)
        rows.append((choice, *(f"{one.num_bytes:.0f}, {one.cosine:.4f}" for one in cells)))
    return rows
