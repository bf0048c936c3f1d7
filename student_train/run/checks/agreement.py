"""Checks that the stores of one run fit together: batches mix their samples, and the student learns from one teacher.

Codecs may differ: a batch that mixes them is decoded to float32 when it is made (`data/collate.py`).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.attention_source import stored_attention
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.run.checks.target_sources import needs_head, targets_by_term, targets_of_stem
from alignkd.vlm.attention.layer_choice import shown_layers
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE

SHOWN = 60


def check_stores_agree(readers: Sequence[StoreReader], config: TrainConfig) -> None:
    """Refuse stores of different teachers, shapes or forms of targets.

    Raises:
        TrainError: both stores, and both values of each difference; or a loss has no target, see `targets_of_stem`.
    """
    first = _facts(readers[0], config)
    for reader in readers[1:]:
        other = _facts(reader, config)
        differing = [
            f"{name} is {first.get(name, 'absent')} and {other.get(name, 'absent')}"
            for name in {**first, **other}
            if first.get(name) != other.get(name)
        ]
        if differing:
            raise TrainError(
                f"stores {readers[0].path} and {reader.path} do not fit together: {'; '.join(differing)}; stores of "
                "one run must come from the same teacher and keep the same kinds of targets; dump one of them again"
            )


def check_same_stores(readers: Sequence[StoreReader], ranks: Ranks) -> None:
    """Refuse stores that changed while the ranks opened them, such as a branch of the hub; called by all ranks.

    Each rank opens the stores itself; with other samples on one of them, the ranks would not share an order.

    Raises:
        TrainError: on all ranks, names the first such store.
    """
    opened = ranks.from_all([(reader.manifest.whole_hash[:12], len(reader)) for reader in readers])
    for number, reader in enumerate(readers):
        states = [stores[number] for stores in opened]
        if other := next((state for state in states if state != states[0]), None):
            shown = " and ".join(f"{name} with {count} records" for name, count in (states[0], other))
            raise TrainError(
                f"store {reader.path}: changed while the processes of this run opened it: they found {shown}; run "
                "again (for a store on the hub, with @COMMIT)"
            )


def samples_in_several(readers: Sequence[StoreReader], used: NDArray[np.int64]) -> int:
    """How many samples (conversation and images) are in more than one of the stores, counted once each.

    Args:
        used: positions of the samples that count, in the numbering of a `TrainingSet`.
    """
    ends = np.cumsum([0, *map(len, readers)])
    is_used = np.zeros(ends[-1], np.bool_)
    is_used[used] = True
    # 8 of 32 bytes of a hash suffice: among 10^8 samples, two different ones share them with probability 3e-4
    each = [
        np.unique(reader.keys.first_words[is_used[start:end]])
        for reader, (start, end) in zip(readers, pairwise(ends.tolist()), strict=True)
    ]
    _, counts = np.unique(np.concatenate(each), return_counts=True)
    return int(np.count_nonzero(counts > 1))


def _facts(reader: StoreReader, config: TrainConfig) -> dict[str, str]:
    """What must be equal in all stores, by name."""
    manifest = reader.manifest
    needed = {*targets_by_term(manifest, config.losses).values()}
    facts = {f"fingerprint {name}": _short(value) for name, value in sorted(manifest.fingerprint.items())}
    facts |= {f"shapes.{name}": str(value) for name, value in manifest.shapes.model_dump(mode="json").items()}
    if "attention" in needed:
        attention = stored_attention(manifest, of_layers=config.losses.compares_layers)
        facts["codecs.attention_pairs"] = " and ".join(attention.pairs)
        if attention.names:
            facts["layers of the attention"] = shown_layers(attention.layers)
            facts["heads of the attention"] = str(attention.heads)
    if "logits" in needed:
        facts["the form of logits"] = _form_of_logits(reader)
    from_stem = targets_of_stem(reader, config)
    facts |= {f"the source of {name}": "the stem" if name in from_stem else "stored" for name in sorted(needed)}
    files = [STEM_FILE] if from_stem and config.stem is None else []
    if needs_head(manifest, config.losses) and "logits" not in from_stem:
        files.append(LM_HEAD_FILE)
    return facts | {name: _short(manifest.attachments.get(name, "absent")) for name in files}


def _form_of_logits(reader: StoreReader) -> str:
    """Logits of one form can be in one batch: lists of tokens with a tail, draws of equal number, states, all."""
    logits = reader.manifest.codecs.logits
    if logits.kind in ("topk", "nucleus"):
        return "topk or nucleus" if logits.tail is None else f"topk with the tail {logits.tail}"
    return f"sampled with {logits.num_draws} draws" if logits.kind == "sampled" else logits.kind


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[: SHOWN - 3]}..."
