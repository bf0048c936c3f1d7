"""Examples and records of one micro-batch -> padded tensors, targets in the bytes of the store."""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.codecs import get_codec
from alignkd.storage.record.record import (
    EncodedArray,
    HiddenStates,
    Logits,
    Record,
    SampledLogits,
    Target,
    TruncatedLogits,
    as_float32,
)
from alignkd.storage.schema.targets.affinity import AFFINITY
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE, EVIDENCE, FULL, REMOVED
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB
from alignkd.storage.schema.targets.vision import PROJECTOR_RELATIONS, RELATIONS, STATE_NORMS, VISION_STATES
from alignkd.student_train.data.attention_source import ChosenAttention
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.samples.pairs import BatchPairs
from alignkd.student_train.data.stem_targets import StemLookup
from alignkd.student_train.data.targets import (
    AffinityTargets,
    AttentionTargets,
    CounterfactualTargets,
    FullTargets,
    HiddenTargets,
    LogitTargets,
    PreferenceTargets,
    RaggedEntries,
    SampledTargets,
    StemInputs,
    TruncatedTargets,
)
from alignkd.student_train.losses.logits.advantage_groups import high_positions
from alignkd.vlm.inputs.batch import SequenceBatch, collate_sequences, pad_positions
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.position_map import AttentionPairs, Positions

_NO_BLOCK = (np.zeros(0, np.int32), np.zeros(0, np.int32))
# joins the parts of one name, one per target, into one array
Join = Callable[[Sequence[Any]], NDArray[Any]]


def collate(
    samples: Sequence[tuple[Example, Record]],
    *,
    targets: Collection[str],
    attention_pairs: AttentionPairs | ChosenAttention,
    stem: StemLookup | None = None,
    pairs: BatchPairs | None = None,
    high_share: float | None = None,
) -> TrainBatch:
    """One micro-batch with its targets.

    Args:
        targets: which of `attention`, `vision_top`, `vision_all`, `logits`, `vision_states`, `vision_relations`,
            `state_norms`, `vision_text_affinity`, `counterfactual` and `preference` the losses need.
        attention_pairs: queries and keys of the first layer's attention, or the attention of chosen layers.
        stem: computes some of the targets later, on the device; the records' own are not used for those.
        pairs: the pairs among the samples; None: none has a rejected answer.
        high_share: share of a sample's positions that are marked by their visual advantage; None: none is marked.
    """
    given = frozenset() if stem is None else stem.wanted
    wanted = attention_pairs
    if not isinstance(wanted, ChosenAttention):
        wanted = ChosenAttention(pairs=(wanted,))
    examples, records = [example for example, _ in samples], [record for _, record in samples]
    inputs = collate_inputs(examples)
    sequences = inputs.sequences
    with_image = [record for record in records if record.has_image]
    all_wanted, top_wanted = (
        bool(with_image) and target in targets and target not in given for target in ("vision_all", "vision_top")
    )
    attention = None
    if "attention" in targets:
        attention = _attention(examples, None if "attention" in given else records, wanted)
    rejected_N = _rejected(records, pairs)
    return replace(
        inputs,
        high_N=None if high_share is None else _joined([_high(record, high_share) for record in records]),
        attention=attention,
        vision_all_PD=_coded_rows(_vision_of_images(with_image)) if all_wanted else None,
        vision_top_index_K=_top_index(with_image) if top_wanted else None,
        vision_top_embeddings_KD=_coded_rows([r.vision_top_embeddings for r in with_image]) if top_wanted else None,
        logits=logit_targets([record.logits for record in records]) if "logits" in targets else None,
        vision_states_PD=_further(with_image, VISION_STATES) if "vision_states" in targets and with_image else None,
        teacher_tokens_of_image=tuple(itertools.chain(*(record.tokens_of_image for record in with_image))),
        affinity=_affinity(examples, records, sequences) if AFFINITY in targets and with_image else None,
        vision_relations_R=_relations(with_image) if "vision_relations" in targets and with_image else None,
        state_norms_N=_further(records, STATE_NORMS) if "state_norms" in targets else None,
        counterfactual=_counterfactual(records, pairs) if "counterfactual" in targets else None,
        stem=_stem_inputs(examples, sequences, stem, attention, wanted) if stem and with_image else None,
        rejected_N=rejected_N,
        num_rejected=0 if rejected_N is None else int(rejected_N.sum()),
        preference=_preference(records, pairs) if "preference" in targets else None,
    )


def collate_inputs(examples: Sequence[Example]) -> TrainBatch:
    """One micro-batch without targets."""
    sequences = collate_sequences(examples)
    length = sequences.input_ids_BL.shape[1]
    supervised = [row * length + example.positions.supervised_positions for row, example in enumerate(examples)]
    return TrainBatch(
        sequences=sequences,
        supervised_N=torch.from_numpy(np.concatenate(supervised).astype(np.int64)),
        labels_N=sequences.supervised_labels_N,
        positions_of_sample=tuple(map(len, supervised)),
        generated_N=_generated(examples),
    )


def _rejected(records: Sequence[Record], pairs: BatchPairs | None) -> Tensor | None:
    """Which supervised positions are of rejected answers; None if none is."""
    if pairs is None or not pairs.rejected_B.any():
        return None
    return torch.from_numpy(np.repeat(pairs.rejected_B, [len(record.supervised_positions) for record in records]))


def _preference(records: Sequence[Record], pairs: BatchPairs | None) -> PreferenceTargets:
    """The pairs of the batch, of which there may be none."""
    rows: list[int] = [] if pairs is None else pairs.rows_G2.flatten().tolist()
    counts = [len(record.supervised_positions) for record in records]
    starts = [0, *itertools.accumulate(counts)]
    places = [np.arange(starts[row], starts[row + 1]) for row in rows]
    values = [as_float32(records[row].more[SEQUENCE_LOGPROB]) for row in rows]  # type: ignore[arg-type]  # no logits
    return PreferenceTargets(
        places_M=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *places])),
        answers_M=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(place) for place in places])),
        reference_G2=torch.from_numpy(np.concatenate([np.zeros(0, np.float32), *values])).unflatten(0, (-1, 2)),
        chosen_G=torch.tensor(rows[::2], dtype=torch.int64),
    )


def _generated(examples: Sequence[Example]) -> Tensor | None:
    marks = [example.generated for example in examples if example.generated is not None]
    if not any(mark.any() for mark in marks):
        return None
    assert len(marks) == len(examples), "marks of all samples or of none"
    return _joined(marks)


def _high(record: Record, share: float) -> NDArray[np.bool_]:
    """The positions of a record with the highest visual advantage; none of a record without images."""
    if not record.has_image:
        return np.zeros(len(record.supervised_positions), np.bool_)
    return high_positions(as_float32(record.more[ADVANTAGE]), share)  # type: ignore[arg-type]  # kind `values`


def _stem_inputs(
    examples: Sequence[Example],
    sequences: SequenceBatch,
    stem: StemLookup,
    attention: AttentionTargets | None,
    wanted: ChosenAttention,
) -> StemInputs:
    # the loss's own rows serve eq. 2 too if they are the text queries of the first layer alone
    has_tqv = "attention" in stem.wanted and wanted == ChosenAttention() and attention is not None
    return StemInputs(
        text=stem.table.rows(sequences.input_ids_BL.masked_fill(sequences.vision_mask_BL, 0)),
        tqv_places=_places(examples, ChosenAttention()) if "vision_top" in stem.wanted and not has_tqv else None,
        vision_tokens_S=[
            sum(example.positions.tokens_of_image) for example in examples if example.positions.num_images
        ],
    )


def _attention(
    examples: Sequence[Example], records: Sequence[Record] | None, wanted: ChosenAttention
) -> AttentionTargets | None:
    """Targets of eq. 1; None if no sample has a row; without `records` only rows and columns."""
    places = _places(examples, wanted)
    if not any(places.num_rows_B):
        return None
    if records is None:
        return places
    stored = [block for record in records for block in _stored_attention(record, wanted)]
    return replace(places, coded_BRHC=_coded(stored, _padded))


def _places(examples: Sequence[Example], wanted: ChosenAttention) -> AttentionTargets:
    blocks = [_blocks_of_places(example, wanted) or [_NO_BLOCK] for example in examples]
    rows, cols = zip(*(block for of_sample in blocks for block in of_sample), strict=True)
    samples = None
    if max(map(len, blocks)) > 1:
        samples = tuple(sample for sample, of_sample in enumerate(blocks) for _ in of_sample)
    return AttentionTargets(
        rows_BR=pad_positions(rows)[0],
        cols_BC=pad_positions(cols)[0],
        num_rows_B=[len(row) for row in rows],
        num_cols_B=[len(col) for col in cols],
        samples_B=None if samples is None else torch.tensor(samples),
        block_samples=samples,
        layers=wanted.layers,
    )


def _blocks_of_places(example: Example, wanted: ChosenAttention) -> list[tuple[Positions, Positions]]:
    """Rows and columns of each block of a sample."""
    positions = example.positions
    if wanted.by_image:
        (pairs,) = wanted.pairs
        return positions.attention_blocks(pairs)
    if not positions.num_images:
        return []
    rows = np.concatenate([positions.attention_rows(pairs) for pairs in wanted.pairs])
    return [(rows, positions.vision_positions)]


def _stored_attention(record: Record, wanted: ChosenAttention) -> Sequence[Target | None]:
    """The blocks of a record's attention; a target that is absent is one empty block."""
    if wanted.by_image:
        return _blocks(record.attention)
    if not record.has_image:
        return [None]
    targets = [_parts(record.more[name]) for name in wanted.names]  # type: ignore[arg-type]  # no logits
    codec, names = targets[0][0], targets[0][1].keys()
    rows = {name: np.concatenate([wanted.of_entries(parts[name]) for _, parts in targets]) for name in names}
    return [EncodedArray(codec, rows)]


def _blocks(target: Target | None) -> Sequence[Target | None]:
    """The blocks of attention [blocks, ...]; a target that is absent is one empty block."""
    if target is None:
        return [None]
    if isinstance(target, EncodedArray):
        every = [{name: part[block] for name, part in target.parts.items()} for block in range(target.num_rows)]
        return [EncodedArray(target.codec, parts) for parts in every]
    return list(target)


def _vision_of_images(records: Sequence[Record]) -> list[Target]:
    """[P, Dt] of every image."""
    return [image for record in records for image in record.vision_embeddings or ()]


def _further(records: Sequence[Record], name: str) -> EncodedTensor:
    """A further target of all records, joined."""
    return _coded_rows([record.more[name] for record in records])  # type: ignore[misc]  # no logits


def _relations(records: Sequence[Record]) -> EncodedTensor:
    """[R] of the images of all records; a store keeps one kind of relations."""
    return _further(records, RELATIONS if RELATIONS in records[0].more else PROJECTOR_RELATIONS)


def _top_index(records: Sequence[Record]) -> Tensor:
    starts = itertools.accumulate((len(record.vision_positions) for record in records), initial=0)
    index = [
        start + record.vision_top_index.astype(np.int64)
        for start, record in zip(starts, records, strict=False)
        if record.vision_top_index is not None
    ]
    return _joined(index)


def logit_targets(kept: Sequence[Logits | None]) -> LogitTargets:
    """The logits of some records, joined; all records of a store have the same kind of logits."""
    if truncated := [logits for logits in kept if isinstance(logits, TruncatedLogits)]:
        return TruncatedTargets(
            entries=_entries(truncated, [logits.logprobs for logits in truncated]),
            tail_logmass_N=_tail([logits.tail_logmass for logits in truncated]),
        )
    if sampled := [logits for logits in kept if isinstance(logits, SampledLogits)]:
        return SampledTargets(
            entries=_entries(sampled, [logits.counts for logits in sampled]),
            entropy_N=_joined([logits.entropy for logits in sampled]),
            num_draws=max(int(logits.draws_per_position().max(initial=0)) for logits in sampled),
        )
    if hidden := [logits.states for logits in kept if isinstance(logits, HiddenStates)]:
        return HiddenTargets(states=_coded(hidden, np.concatenate))
    return FullTargets(logits=_coded([logits for logits in kept if isinstance(logits, np.ndarray)], np.concatenate))


def _affinity(examples: Sequence[Example], records: Sequence[Record], sequences: SequenceBatch) -> AffinityTargets:
    """Those of the samples with images, of which there is at least one."""
    rows = [row for row, record in enumerate(records) if record.has_image]
    starts = [row * sequences.input_ids_BL.shape[1] for row in rows]
    positions, targets = [examples[row].positions for row in rows], [records[row].more[AFFINITY] for row in rows]
    queries = [start + own.tqv_query_positions for start, own in zip(starts, positions, strict=True)]
    vision = [start + own.vision_positions for start, own in zip(starts, positions, strict=True)]
    num_queries, num_vision = (tuple(map(len, places)) for places in (queries, vision))
    num_teacher = [target.shape[-1] for target in targets]  # type: ignore[union-attr]  # no logits
    return AffinityTargets(
        coded_SQT=_coded(targets, _padded),  # type: ignore[arg-type]  # no logits
        queries_SQ=pad_positions(queries)[0],
        vision_SP=pad_positions(vision)[0],
        samples_S=torch.tensor(rows),
        lengths_3S=torch.tensor([num_queries, num_teacher, num_vision]),
        num_queries_S=num_queries,
        num_vision_S=num_vision,
    )


def _counterfactual(records: Sequence[Record], pairs: BatchPairs | None) -> CounterfactualTargets | None:
    """Both passes of the samples with images and without a rejected answer; None if there is no such sample."""
    rejected_B = np.zeros(len(records), np.bool_) if pairs is None else pairs.rejected_B
    compared = [record.has_image and not rejected for record, rejected in zip(records, rejected_B, strict=True)]
    if not any(compared):
        return None
    counts = [len(record.supervised_positions) for record in records]
    starts = itertools.accumulate(counts, initial=0)
    places = [
        np.arange(start, start + count)
        for start, count, is_compared in zip(starts, counts, compared, strict=False)
        if is_compared
    ]
    more = [record.more for record, is_compared in zip(records, compared, strict=True) if is_compared]
    full, removed = (logit_targets([found[name] for found in more]) for name in (FULL, REMOVED))  # type: ignore[misc]
    assert isinstance(full, TruncatedTargets) and isinstance(removed, TruncatedTargets)
    # of all samples with images: the further pass runs over the whole batch
    shown = [record.more for record in records if record.has_image]
    evidence = [as_float32(found[EVIDENCE]) > 0 for found in shown if EVIDENCE in found]  # type: ignore[arg-type]
    return CounterfactualTargets(
        places_M=_joined(places),
        full=full,
        removed=removed,
        evidence_P=_joined(evidence) if evidence else None,
    )


def _tail(tails: Sequence[NDArray[np.float32] | None]) -> Tensor | None:
    """The tails of all records; None if the store does not know them."""
    known = [tail for tail in tails if tail is not None]
    return _joined(known) if known else None


def _entries(
    logits: Sequence[TruncatedLogits] | Sequence[SampledLogits], values: Sequence[NDArray[Any]]
) -> RaggedEntries:
    counts_N = np.concatenate([np.diff(kept.offsets) for kept in logits])
    return RaggedEntries(
        ids_E=_joined([kept.ids for kept in logits]),
        values_E=_joined(values),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(counts_N)]).astype(np.int64)),
        widest=int(counts_N.max(initial=0)),
    )


def _coded(targets: Sequence[Target | None], join: Join) -> EncodedTensor:
    """Targets of one codec, joined part by part; at least one is not None.

    If they have different codecs (rows through several images cannot keep a scale per image), all are decoded.
    """
    there = [_parts(target) for target in targets if target is not None]
    if len({codec for codec, _ in there}) > 1:
        return _coded([None if target is None else as_float32(target) for target in targets], join)
    codec, names = there[0][0], there[0][1].keys()
    absent = dict.fromkeys(names)
    every = [absent if target is None else _parts(target)[1] for target in targets]
    return EncodedTensor(codec=codec, parts={name: torch.from_numpy(join([p[name] for p in every])) for name in names})


def _coded_rows(targets: Sequence[Target | None]) -> EncodedTensor:
    """Targets [n, D] of one codec, one after the other."""
    there = [target for target in targets if target is not None]
    if len({_parts(target)[0] for target in there}) > 1:  # rows through several images cannot keep a scale per image
        there = [as_float32(target) for target in there]
    codec, names = _parts(there[0])[0], _parts(there[0])[1].keys()
    shared = get_codec(codec).shared_parts
    parts = {name: [_parts(target)[1][name] for target in there] for name in names}
    return EncodedTensor(
        codec=codec,
        parts={
            name: torch.from_numpy((np.stack if name in shared else np.concatenate)(arrays))
            for name, arrays in parts.items()
        },
        rows_of_group=tuple(target.shape[0] for target in there) if shared else None,
    )


def _parts(target: Target) -> tuple[str, dict[str, NDArray[Any]]]:
    if isinstance(target, EncodedArray):
        return target.codec, target.parts
    return target.dtype.name, {"": target}


def _padded(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any]:
    """Pad to [B, ...] with 0; None is padded as well."""
    there = [part for part in parts if part is not None]
    sizes = [max(axis) for axis in zip(*(part.shape for part in there), strict=True)]
    padded = np.zeros((len(parts), *sizes), there[0].dtype)
    for sample, part in enumerate(parts):
        if part is not None:
            padded[sample][tuple(slice(size) for size in part.shape)] = part
    return padded


def _joined(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays))
