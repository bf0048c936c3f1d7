"""Examples and records of one micro-batch -> padded tensors."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage import Record, TruncatedLogits
from student_train.batch import AttentionTargets, TrainBatch
from student_train.losses.sparse_distribution import SparseDistribution
from vlm.batch import collate_sequences, pad_positions
from vlm.examples import Example
from vlm.position_map import AttentionPairs


def collate(
    samples: Sequence[tuple[Example, Record]], *, terms: Collection[str], attention_pairs: AttentionPairs
) -> TrainBatch:
    """One micro-batch with the targets that `terms` need."""
    examples, records = [example for example, _ in samples], [record for _, record in samples]
    sequences = collate_sequences(examples)
    length = sequences.input_ids_BL.shape[1]
    supervised = [row * length + example.positions.supervised_positions for row, example in enumerate(examples)]
    with_image = [record for record in records if record.has_image]
    return TrainBatch(
        sequences=sequences,
        supervised_N=torch.from_numpy(np.concatenate(supervised).astype(np.int64)),
        labels_N=sequences.supervised_labels_N,
        attention=_attention(examples, records, attention_pairs) if "attention" in terms else None,
        vision_all_IPD=_stack([r.vision_embeddings for r in with_image]) if "vision_all" in terms else None,
        top_index_IK=_stack([r.vision_top_index for r in with_image]) if "vision_focus" in terms else None,
        top_embeddings_IKD=_stack([r.vision_top_embeddings for r in with_image]) if "vision_focus" in terms else None,
        logits=_logits(records) if "logit" in terms else None,
    )


def _attention(
    examples: Sequence[Example], records: Sequence[Record], pairs: AttentionPairs
) -> AttentionTargets | None:
    rows = [example.positions.attention_rows(pairs) for example in examples]
    cols = [example.positions.attention_cols(pairs) for example in examples]
    if not any(len(row) for row in rows):
        return None
    rows_BR, cols_BC = pad_positions(rows)[0], pad_positions(cols)[0]
    targets = [record.attention for record in records]
    first = next(target for target in targets if target is not None)
    teacher = np.zeros((len(records), first.shape[1], rows_BR.shape[1], cols_BC.shape[1]), first.dtype)
    for sample, target in enumerate(targets):
        if target is not None:
            teacher[sample, :, : target.shape[0], : target.shape[2]] = target.transpose(1, 0, 2)
    return AttentionTargets(
        rows_BR=rows_BR,
        cols_BC=cols_BC,
        num_rows_B=[len(row) for row in rows],
        num_cols_B=[len(col) for col in cols],
        teacher_BHRC=torch.from_numpy(teacher),
    )


def _stack(arrays: Sequence[NDArray[Any] | None]) -> Tensor | None:
    """One row per image; index arrays become int64."""
    if not arrays:
        return None
    stacked = np.stack([array for array in arrays if array is not None])
    return torch.from_numpy(stacked.astype(np.int64) if stacked.dtype.kind == "u" else stacked)


def _logits(records: Sequence[Record]) -> Tensor | SparseDistribution:
    targets = [record.logits for record in records]
    truncated = [target for target in targets if isinstance(target, TruncatedLogits)]
    if not truncated:
        return torch.from_numpy(np.concatenate([target for target in targets if isinstance(target, np.ndarray)]))
    num_kept = np.concatenate([np.diff(target.offsets) for target in truncated])
    return SparseDistribution.from_ragged(
        np.concatenate([target.ids for target in truncated]),
        np.concatenate([target.logprobs for target in truncated]),
        np.concatenate([[0], np.cumsum(num_kept)]),
        np.concatenate([target.tail_logmass for target in truncated]),
    )
