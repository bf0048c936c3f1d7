"""Checks whether a store's content is plausible: intact targets may belong to other positions, unseen by checksums.

Labels: the label of a position must be more probable for the teacher than its neighbour's (`label_shift.py`).
Attention: probabilities of one query are not negative and sum to at most 1 (`attention_sums.py`).
Log-probabilities of whole samples: each is at most 0 and equals that of the stored entries (`sequence.py`).
Visual advantage: of a store with a counterfactual pass, it is not 0 everywhere (`advantage.py`).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.read.logprobs import distribution_of, open_lm_head
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.shard_records import ShardFolder
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.tools.verify.advantage import AdvantageSums, advantage_rounding, advantage_sums
from alignkd.storage.tools.verify.attention_sums import AttentionSums, record_sums
from alignkd.storage.tools.verify.label_shift import LabelScores, LabelVerdict
from alignkd.storage.tools.verify.sequence import SequenceFigures, SequenceSums
from alignkd.storage.tools.verify.verify import Problem

# supervised positions of a shard whose labels are looked up; with hidden states each costs a product with the lm_head
MAX_POSITIONS = 4096
MAX_HIDDEN_POSITIONS = 512


@dataclass(frozen=True, kw_only=True)
class PlausibilityReport:
    """Figures of all shards together, and problems by shard."""

    labels: LabelVerdict
    attention: AttentionSums
    advantage: AdvantageSums = field(default_factory=AdvantageSums)
    sequences: SequenceFigures = field(default_factory=SequenceFigures)
    problems: list[Problem] = field(default_factory=list)


def check_plausibility(
    files: StoreFiles,
    *,
    skip: Collection[int] = (),
    progress: Callable[[int], object] = lambda records: None,
) -> PlausibilityReport:
    """All checks over every readable shard; a shard with enough positions has its own verdict.

    Args:
        skip: shards that are known to be damaged.
        progress: called with the number of records done since the last call.

    Raises:
        StoreError: not a store, or a damaged lm_head.
        RemoteError: a remote store does not answer, or refuses.
    """
    store = ShardFolder(files)
    lm_head = open_lm_head(files, store.manifest)
    labels, attention = LabelScores(store.manifest), AttentionSums()
    advantage, sequences = AdvantageSums(), SequenceSums()
    problems: list[Problem] = []
    for shard in [shard for shard in store.shards if shard not in skip]:
        try:
            of_shard, sums, gains = _look(store.open(shard), store.manifest, lm_head, sequences, progress)
        except RemoteError:
            raise
        except StoreError as error:
            problems.append(Problem(shard=shard, message=str(error)))
            continue
        found = [*of_shard.problems(), *sums.problems()]
        problems += [Problem(shard=shard, message=f"shard {shard}: {line}") for line in found]
        labels.add_all(of_shard)
        attention, advantage = attention + sums, advantage + gains
    texts = sequences.figures()
    problems += [Problem(shard=None, message=f"store {files.location}: {line}") for line in texts.problems]
    if not problems:  # too few positions in each shard may be enough together
        problems += [Problem(shard=None, message=f"store {files.location}: {line}") for line in labels.problems()]
    blind = advantage.problems(advantage_rounding(store.manifest.fingerprint.get("dtype", "")))
    problems += [Problem(shard=None, message=f"store {files.location}: {line}") for line in blind]
    verdict = labels.verdict()
    if store.manifest.codecs.logits.kind == "hidden" and lm_head is None:
        verdict = LabelVerdict(outcome="not stored")
    return PlausibilityReport(
        labels=verdict, attention=attention, advantage=advantage, sequences=texts, problems=problems
    )


def _look(
    shard: OpenShard,
    manifest: Manifest,
    lm_head: LmHead | None,
    sequences: SequenceSums,
    progress: Callable[[int], object],
) -> tuple[LabelScores, AttentionSums, AdvantageSums]:
    """Check attention, visual advantage and log-probability of every record, the labels of evenly spaced records."""
    labels, sums, total = LabelScores(manifest), AttentionSums(), shard.tables.rows_of("supervised")
    gains = AdvantageSums()
    stride = -(-total // (MAX_POSITIONS if lm_head is None else MAX_HIDDEN_POSITIONS)) or 1
    for number in range(len(shard)):
        record = shard.record(number)
        sums = sums + record_sums(record, manifest)
        gains = gains + advantage_sums(record)
        sequences.add(record)
        if number % stride == 0 and (found := distribution_of(record.logits, lm_head)) is not None:
            labels.add(record, found)
        progress(1)
    return labels, sums, gains
