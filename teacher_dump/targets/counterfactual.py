"""The second pass of the teacher, in which vision tokens are replaced, and what the store keeps of both passes.

MCD compares both passes on one list of tokens and a bucket for all others; visual advantage is the difference of the
labels' log-probabilities. `alignkd.vlm.families.replaced_vision` has the replacement.

Shapes: N supervised positions of the samples with images, V vocabulary, K entries, P vision tokens of a sample.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.errors import RecordError
from alignkd.storage.record.distributions import TruncatedLogits
from alignkd.storage.record.record import Logits, Target
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE, EVIDENCE, FULL, REMOVED
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.settings.counterfactual import CounterfactualConfig
from alignkd.teacher_dump.targets.device_codecs import extremes
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies, batch_to_device
from alignkd.teacher_dump.targets.logits.distribution import POSITIONS_AT_ONCE
from alignkd.teacher_dump.targets.logits.exact_mass import ONE, cumulative_mass, integer_mass
from alignkd.teacher_dump.targets.logits.truncation import NOT_FINITE, smallest_ids
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.attention.focus import focus_scores
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.families.replaced_vision import neutral_vision, replaced_vision
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.inputs.batch import ImageTensors, collate_sequences

# columns of a dense table: int32 [N, K] tokens by falling probability in either pass, bool [N, K], float32 [N, K], [N]
IDS, KEPT, FULL_LOGPROBS, REMOVED_LOGPROBS, FULL_TAIL, REMOVED_TAIL = (
    *("ids", "kept", "full_logprobs", "removed_logprobs"),
    *("full_tail", "removed_tail"),
)


@dataclass(frozen=True, kw_only=True)
class CounterfactualRows:
    """One sample's rows of the table of its batch, and bool [P] of the tokens that were replaced; None: all were."""

    arrays: HostArrays
    rows: slice
    evidence: HostArrays | None

    def arrive(self) -> None:
        """Wait until everything is on the host."""
        for arrays in (self.arrays, self.evidence):
            if arrays is not None:
                arrays.wait()

    def targets(self) -> dict[str, Target | Logits]:
        """The record's further targets.

        Raises:
            RecordError: the teacher's output is NaN or infinite.
        """
        table = {name: values[self.rows] for name, values in self.arrays.wait().items()}
        if bad := int(table[NOT_FINITE].sum()):
            raise RecordError(
                f"logits of the counterfactual pass at {bad} of {len(table[NOT_FINITE])} supervised positions are NaN "
                "or infinite, expected none"
            )
        found: dict[str, Target | Logits] = {
            FULL: _truncated(table, FULL_LOGPROBS, FULL_TAIL),
            REMOVED: _truncated(table, REMOVED_LOGPROBS, REMOVED_TAIL),
            ADVANTAGE: table[ADVANTAGE].astype(np.float16),
        }
        if self.evidence is not None:
            found[EVIDENCE] = self.evidence.wait()[EVIDENCE].astype(np.float16)
        return found


class CounterfactualPass:
    """Runs the teacher a second time on the samples of a batch that have images.

    Args:
        model: the teacher.
        config: section `store.counterfactual`.
        copies: starts the copies to the host.
        num_tokens: columns of the head that are tokens, if the others are padding; None: all columns.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        config: CounterfactualConfig,
        copies: HostCopies,
        *,
        num_tokens: int | None = None,
    ) -> None:
        self.model, self.config, self._copies, self._num_tokens = model, config, copies, num_tokens

    @property
    def watched(self) -> tuple[int, ...]:
        """The decoder layers that the first pass has to record."""
        return (self.model.config.attention_layer,) if self.config.remove == "focus" else ()

    def evidence(self, samples: Sequence[Prepared], layers: Mapping[int, AttentionLayer]) -> dict[int, Tensor | None]:
        """bool [P] of the tokens that are replaced, for each row of the batch that has images; None: all of them.

        Args:
            layers: what the first pass recorded, `watched` among it.
        """
        with_image = {row: sample for row, sample in enumerate(samples) if sample.image_hashes}
        if self.config.remove == "image":
            return dict.fromkeys(with_image)
        first = layers[self.model.config.attention_layer]
        return {row: self._focus(sample, row, first) for row, sample in with_image.items()}

    def states(
        self, samples: Sequence[Prepared], visions: Sequence[Vision], evidence: Sequence[Tensor | None]
    ) -> Tensor:
        """Last hidden states [B, L, Dt] of the second pass.

        Args:
            samples: those of the batch that have images.
            visions: the encoded images of each.
            evidence: the tokens that are replaced, of each.
        """
        images = [self._on_device(arrays) for sample in samples for arrays in sample.images]
        owner = [number for number, sample in enumerate(samples) for _ in sample.images]
        neutral = neutral_vision(self.model, images, owner)
        masks = [one for one in evidence if one is not None]
        vision = replaced_vision(Vision.join(visions), neutral, torch.cat(masks) if masks else None)
        batch = batch_to_device(collate_sequences([sample.example for sample in samples]), self.model.device)
        return self.model.hidden_states(batch, vision)

    def rows(
        self,
        samples: Sequence[Prepared],
        states_ND: tuple[Tensor, Tensor],
        evidence: Sequence[Tensor | None],
    ) -> list[CounterfactualRows]:
        """What the store keeps of each sample.

        Args:
            states_ND: hidden states at the supervised positions of the samples, of the first and the second pass.
        """
        labels = np.concatenate([sample.example.positions.next_labels for sample in samples]).astype(np.int64)
        table = compared_passes(
            self.model.head,
            states_ND,
            to_device(torch.from_numpy(labels), self.model.device),
            self.config,
            num_tokens=self._num_tokens,
        )
        arrays, found, start = self._copies.start(table), [], 0
        for sample, mask in zip(samples, evidence, strict=True):
            end = start + len(sample.example.positions.next_labels)
            kept = None if mask is None else self._copies.start({EVIDENCE: mask})
            found.append(CounterfactualRows(arrays=arrays, rows=slice(start, end), evidence=kept))
            start = end
        return found

    def _focus(self, sample: Prepared, row: int, first_layer: AttentionLayer) -> Tensor:
        """The share of the sample's vision tokens with the highest focus score, ties by position."""
        positions = sample.example.positions
        rows, cols = (
            to_device(torch.from_numpy(at.astype(np.int64)[None]), self.model.device)
            for at in (positions.tqv_query_positions, positions.vision_positions)
        )
        which = None if first_layer.num_samples == 1 else to_device(torch.tensor([row]), self.model.device)
        limit = chunk_bytes_on(self.model.device.type)
        scores_P = focus_scores(first_layer.attention(rows, cols, which, chunk_bytes=limit)[0])
        chosen = scores_P.argsort(descending=True, stable=True)[: math.ceil(self.config.focus_share * len(scores_P))]
        mask_P = torch.zeros(len(scores_P), dtype=torch.bool, device=scores_P.device)
        mask_P[chosen] = True
        return mask_P

    def _on_device(self, arrays: Mapping[str, NDArray[Any]]) -> ImageTensors:
        return {
            name: to_device(torch.from_numpy(np.ascontiguousarray(values)), self.model.device)
            for name, values in arrays.items()
        }


@torch.no_grad()
def compared_passes(
    head: Callable[[Tensor], Tensor],
    states_ND: tuple[Tensor, Tensor],
    labels_N: Tensor,
    config: CounterfactualConfig,
    *,
    num_tokens: int | None = None,
) -> dict[str, Tensor]:
    """Both passes on the union of their nuclei, and visual advantage: tensors with one row per position.

    Args:
        head: the teacher's head, [n, D] -> [n, V].
        states_ND: last hidden states of the first and the second pass.
        labels_N: int64, the next token at each position.
        num_tokens: columns of real tokens, the first ones; None: all.
    """
    starts = range(0, max(len(labels_N), 1), POSITIONS_AT_ONCE)
    parts = []
    for rows in (slice(start, start + POSITIONS_AT_ONCE) for start in starts):
        logits = [_summed(head(states[rows])[:, :num_tokens]) for states in states_ND]
        parts.append(_compared(logits[0], logits[1], labels_N[rows], config.entries, config.mass))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _compared(full_NV: Tensor, removed_NV: Tensor, labels_N: Tensor, entries: int, mass: float) -> dict[str, Tensor]:
    finite = [extremes(logits, dim=-1).isfinite().all(dim=-1) for logits in (full_NV, removed_NV)]
    full_NV, removed_NV = full_NV.log_softmax(-1), removed_NV.log_softmax(-1)
    ids_NK, kept_NK = union_of_nuclei(full_NV, removed_NV, entries, mass)
    advantage_N = (full_NV - removed_NV).gather(1, labels_N[:, None])[:, 0]
    table = {
        NOT_FINITE: ~(finite[0] & finite[1]),
        IDS: ids_NK.to(torch.int32),
        KEPT: kept_NK,
        ADVANTAGE: advantage_N,
    }
    for name, tail, logprobs_NV in (
        (FULL_LOGPROBS, FULL_TAIL, full_NV),
        (REMOVED_LOGPROBS, REMOVED_TAIL, removed_NV),
    ):
        table[name], table[tail] = on_tokens(logprobs_NV, ids_NK, kept_NK)
    return table


def on_tokens(logprobs_NV: Tensor, ids_NK: Tensor, kept_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of some tokens [N, K], and of all others together [N], from those of the whole vocabulary.

    Args:
        ids_NK: distinct tokens of each position.
        kept_NK: bool, which of them are meant; the others count as others.
    """
    found_NK = logprobs_NV.gather(1, ids_NK)
    rest_NV = logprobs_NV.scatter_add(1, ids_NK, torch.zeros_like(found_NK).masked_fill_(kept_NK, -torch.inf))
    return found_NK, rest_NV.logsumexp(-1)


def _summed(logits_NV: Tensor) -> Tensor:
    """In float32, or in float64 if they already are."""
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def union_of_nuclei(full_NV: Tensor, removed_NV: Tensor, entries: int, mass: float) -> tuple[Tensor, Tensor]:
    """The tokens of the nucleus of either pass; if they are more than `entries`, those most probable in either.

    Args:
        full_NV, removed_NV: float32 log-probabilities.
        mass: of each nucleus, which has at most `entries` tokens; 1 for `entries` tokens whatever their mass.

    Returns:
        int64 [N, K] distinct tokens, the most probable first, and bool [N, K], which of them are in the union.
    """
    count = min(entries, full_NV.shape[1])
    score_NV = torch.full_like(full_NV, -torch.inf)
    for logprobs_NV in (full_NV, removed_NV):
        best_NK, ids_NK = logprobs_NV.topk(count, dim=-1)
        if mass < 1:
            mass_NK = integer_mass(best_NK)
            before_NK = cumulative_mass(mass_NK) - mass_NK
            best_NK = best_NK.masked_fill(before_NK >= mass * ONE, -torch.inf)
        score_NV.scatter_reduce_(1, ids_NK, best_NK, "amax")
    best_NK, ids_NK = score_NV.topk(count, dim=-1)
    return ids_NK, best_NK > -torch.inf


def _truncated(table: Mapping[str, NDArray[Any]], logprobs: str, tail: str) -> TruncatedLogits:
    """One pass in the record's form, on the tokens of the union."""
    kept_NK = table[KEPT]
    return TruncatedLogits(
        ids=smallest_ids(table[IDS][kept_NK]),
        logprobs=table[logprobs][kept_NK],
        offsets=np.concatenate([[0], np.cumsum(kept_NK.sum(axis=1))]).astype(np.int64),
        tail_logmass=table[tail],
    )
