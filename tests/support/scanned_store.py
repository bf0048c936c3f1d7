"""The list of samples of a store by plain Python loops over its records, to compare with the index of the browser."""

import hashlib
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignkd.pipeline.browse.index.filters import Filter
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.record import Record
from alignkd.storage.tools.stats import general_reason

Row = dict[str, Any]


def scan(reader: StoreReader, figures: Callable[[Record], Row]) -> list[Row]:
    """Every column of every sample that needs no target, and what `figures` gives for a record."""
    rows = [_row(reader, position) | figures(reader[position]) for position in range(len(reader))]
    for row in rows:
        row["copies"] = sum(other["key"] == row["key"] for other in rows)
        same = sum(other["answer"] == row["answer"] for other in rows)
        row["same_answer"] = same if row["answer"] else None
    unusable = []
    for commit in reader.commits:
        for sample in commit.quarantined:
            empty = dict.fromkeys(rows[0]) if rows else {}
            unusable.append(
                empty
                | {"index": sample.index, "id": sample.id, "reason": sample.reason, "unusable": 1}
                | {"shard": commit.shard, "source": _source(reader, sample.index), "text": None}
            )
    return rows + unusable


def _row(reader: StoreReader, position: int) -> Row:
    record = reader[position]
    shard = next(commit.shard for commit in reader.commits if _holds(reader, commit.shard, position))
    answer = "\n".join(turn["value"] for turn in record.conversations if turn["from"] == "gpt")
    data = answer.encode("utf-8", "surrogatepass")
    return {
        "position": position,
        "index": record.index,
        "id": record.id,
        "key": record.key,
        "source": _source(reader, record.index),
        "shard": shard,
        "tokens": len(record.input_ids),
        "vision": len(record.vision_positions),
        "images": record.num_images,
        "supervised": len(record.supervised_positions),
        "repetition": len(data) / len(zlib.compress(data, 1)) if data else None,
        "unusable": 0,
        "reason": None,
        "answer": hashlib.sha256(data).hexdigest() if data else None,
        "text": "\n".join(turn["value"] for turn in record.conversations),
    }


def _holds(reader: StoreReader, shard: int, position: int) -> bool:
    sizes = {commit.shard: commit.num_records for commit in reader.commits}
    first = sum(size for number, size in sizes.items() if number < shard)
    return first <= position < first + sizes[shard]


def _source(reader: StoreReader, index: int) -> str:
    for source in reader.manifest.all_sources():
        if index < source.num_samples:
            return source.name
        index -= source.num_samples
    return reader.sources[0]


def plain_figures(record: Record) -> Row:
    """The figures of a record by their definitions, from float64 probabilities."""
    labels = [int(label) for label in record.labels[1:] if label != -100]
    stored: Any = record.more.get("sequence_logprob")
    advantage: Any = record.more.get("visual_advantage")
    perplexity = math.exp(-float(as_float32(stored)[0]) / len(labels)) if stored is not None and labels else None
    return {
        "perplexity": perplexity,
        "visual_advantage": None
        if advantage is None or not labels
        else float(np.mean(as_float32(advantage), dtype=float)),
        **_of_distribution(record.logits, labels),
        "attention_mass": _attention_mass(record),
    }


def _of_distribution(logits: Any, labels: Sequence[int]) -> Row:
    none: Row = dict.fromkeys(("entropy", "worst_label", "agreement", "tail_mass"))
    if not labels or logits is None or isinstance(logits, HiddenStates):
        return none
    if isinstance(logits, SampledLogits):
        return none | {"entropy": float(np.mean(logits.entropy, dtype=float))}
    if isinstance(logits, TruncatedLogits):
        return _of_entries(logits, labels)
    entropy, worst, agreed = [], [], []
    for row, label in zip(np.asarray(logits, np.float64), labels, strict=True):
        probs = np.exp(row - row.max())
        probs /= probs.sum()
        entropy.append(-sum(p * math.log(p) for p in probs if p > 0))
        worst.append(-math.log(probs[label]))
        agreed.append(row[label] == row.max())
    return none | {"entropy": np.mean(entropy), "worst_label": max(worst), "agreement": np.mean(agreed)}


def _of_entries(logits: TruncatedLogits, labels: Sequence[int]) -> Row:
    entropy, worst, tails = [], [], []
    for position, label in enumerate(labels):
        at = slice(logits.offsets[position], logits.offsets[position + 1])
        kept = {int(one): float(value) for one, value in zip(logits.ids[at], logits.logprobs[at], strict=True)}
        outcomes = list(kept.values())
        tail = None if logits.tail_logmass is None else float(logits.tail_logmass[position])
        if tail is not None:
            outcomes.append(tail)
            worst.append(-kept.get(label, tail))
            tails.append(math.exp(tail))
        entropy.append(-sum(math.exp(value) * value for value in outcomes))
    return {
        "entropy": np.mean(entropy),
        "worst_label": max(worst) if worst else None,
        "tail_mass": np.mean(tails) if tails else None,
    }


def _attention_mass(record: Record) -> float | None:
    if record.attention is None:
        return None
    values = as_float32(record.attention).astype(np.float64)
    rows, heads = values.shape[1:3]
    masses = [values[:, row, head].sum() for row in range(rows) for head in range(heads)]
    return float(np.mean(masses)) if masses else None


def words(text: str) -> list[str]:
    """Words of a text, written another way than in the product: letter by letter."""
    found, word = [], ""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    kept = "".join(letter for letter in decomposed if not "\u0300" <= letter <= "\u036f")
    for letter in [*unicodedata.normalize("NFC", kept), " "]:
        if "\u4e00" <= letter <= "\u9fff" or "\u3040" <= letter <= "\u30ff":
            found += [word, letter]
            word = ""
        elif letter.isalnum():
            word += letter
        else:
            found.append(word)
            word = ""
    return [one for one in found if one]


def holds(text: str | None, query: str) -> bool:
    """Whether a text has all that a query asks for."""
    if not query.strip():
        return True
    if text is None:
        return False
    said, asked = words(text), []
    for quoted, plain in re.findall(r'"([^"]*)"|([^\s"]+)', query):
        if found := words(quoted or plain):
            asked.append((found, plain.endswith("*")))
    return bool(asked) and all(_phrase(said, phrase, prefix) for phrase, prefix in asked)


def _phrase(said: list[str], phrase: list[str], prefix: bool) -> bool:
    for start in range(len(said) - len(phrase) + 1):
        *first, last = said[start : start + len(phrase)]
        if first == phrase[:-1] and (last == phrase[-1] or (prefix and last.startswith(phrase[-1]))):
            return True
    return False


def passes(row: Row, wanted: Filter) -> bool:
    """Whether a row passes a filter."""
    if wanted.sources and row["source"] not in wanted.sources:
        return False
    if wanted.unusable is not None and bool(row["unusable"]) != wanted.unusable:
        return False
    if wanted.reasons and (row["reason"] is None or general_reason(row["reason"]) not in wanted.reasons):
        return False
    if wanted.id.lower() not in row["id"].lower():
        return False
    for name, (low, high) in wanted.ranges.items():
        value = row[name]
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            return False
    return holds(row["text"], wanted.text)


def ordered(rows: list[Row], sort: str, *, descending: bool) -> list[Row]:
    """Rows by a column, those without a value last, equal values in their old order."""
    known = [row for row in rows if row[sort] is not None]
    known.sort(key=lambda row: row[sort], reverse=descending)
    if descending:  # Python keeps the order of equal values also when it sorts in reverse
        assert [row[sort] for row in known] == sorted((row[sort] for row in known), reverse=True)
    return known + [row for row in rows if row[sort] is None]


def counted(rows: list[Row], column: str, edges: Sequence[float]) -> list[int]:
    """Rows in each bin: the left edge belongs to it, of the last bin both."""
    counts = [0] * max(0, len(edges) - 1)
    for row in rows:
        if (value := row[column]) is not None:
            last = len(counts) - 1
            counts[next(n for n in range(last + 1) if value < edges[n + 1] or n == last)] += 1
    return counts


def groups(rows: list[Row], wanted: Filter, column: str) -> dict[str, tuple[int, int]]:
    """Name -> samples, and samples that pass the filter without its choice of this column."""
    named = [(general_reason(row[column]) if column == "reason" else row[column], row) for row in rows if row[column]]
    counts = Counter(name for name, _ in named)
    matching = Counter(name for name, row in named if passes(row, wanted.without(column)))
    return {name: (count, matching[name]) for name, count in counts.items()}
