"""A stored record as people and other programs read it: named tensors, a summary, a page of text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.manifest import Manifest
from storage.record import (
    EncodedArray,
    HiddenStates,
    Logits,
    Record,
    SampledLogits,
    Target,
    TruncatedLogits,
)

TOP_TOKENS = 5


def export_tensors(record: Record, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Every array of a record under its public name; targets that are not stored are left out.

    Attention is [Ht, R, C] here (heads first), called after its pairs: `tqv_attention` is [Ht, Q, P]. Ids, labels,
    positions and indices are int64, as torch indexes with.
    """
    tensors: dict[str, NDArray[Any] | None] = {
        "input_ids": record.input_ids,
        "labels": record.labels,
        "vision_positions": record.vision_positions,
        "tqv_query_positions": record.tqv_query_positions,
        "supervised_positions": record.supervised_positions,
        f"{manifest.codecs.attention_pairs}_attention": None
        if record.attention is None
        else _floats(record.attention).transpose(1, 0, 2),
        "vision_top_index": record.vision_top_index,
        "vision_top_embeddings": _floats(record.vision_top_embeddings),
        "vision_embeddings": _floats(record.vision_embeddings),
    }
    tensors |= _logit_tensors(record.logits)
    return {name: _widened(values) for name, values in tensors.items() if values is not None}


def _logit_tensors(logits: Logits | None) -> dict[str, NDArray[Any] | None]:
    if isinstance(logits, TruncatedLogits):
        return {
            "logit_ids": logits.ids,
            "logit_logprobs": logits.logprobs,
            "logit_offsets": logits.offsets,
            "tail_logmass": logits.tail_logmass,
        }
    if isinstance(logits, SampledLogits):
        return {
            "logit_ids": logits.ids,
            "logit_draws": logits.counts,
            "logit_offsets": logits.offsets,
            "entropy": logits.entropy,
        }
    if isinstance(logits, HiddenStates):
        return {"hidden_states": _floats(logits.states)}
    return {"logits": logits}


def _floats(target: Target | None) -> Any:
    """An encoded target decoded to float32, others in their own dtype."""
    return target.decode() if isinstance(target, EncodedArray) else target


def summary(record: Record, manifest: Manifest) -> dict[str, Any]:
    """The record as JSON: identity, conversation, positions, shapes of the targets, the teacher's likeliest tokens."""
    return {
        "key": record.key,
        "id": record.id,
        "index": record.index,
        "image": record.image,
        "image_sha256": record.image_sha256,
        "conversations": record.conversations,
        "num_tokens": len(record.input_ids),
        "sequence_length": record.sequence_length,
        "input_ids": record.input_ids.tolist(),
        "vision_positions": _span(record.vision_positions),
        "num_queries": len(record.tqv_query_positions),
        "supervised": supervised_positions(record),
        "focus": [] if record.vision_top_index is None else record.vision_top_index.tolist(),
        "targets": {
            name: {"shape": list(values.shape), "dtype": str(values.dtype)}
            for name, values in export_tensors(record, manifest).items()
        },
    }


def supervised_positions(record: Record) -> list[dict[str, Any]]:
    """For each supervised position the label and, where probabilities are stored, the teacher's likeliest tokens."""
    labels = record.labels[1:][record.labels[1:] != -100].tolist()
    rows = []
    for number, (position, label) in enumerate(zip(record.supervised_positions.tolist(), labels, strict=True)):
        row: dict[str, Any] = {"position": position, "label": label}
        if isinstance(record.logits, np.ndarray | TruncatedLogits):
            ids, probs, tail = _distribution(record.logits, number)
            best = np.argsort(-probs, kind="stable")[:TOP_TOKENS]
            row["top"] = [{"id": int(ids[entry]), "prob": float(probs[entry])} for entry in best]
            row["label_prob"] = float(probs[ids == label].sum())
            row["tail_mass"] = tail
        rows.append(row)
    return rows


def page(record: Record, manifest: Manifest) -> str:
    """The record as text for a terminal."""
    seen = summary(record, manifest)
    lines = [f"{name:<14}{seen[name]}" for name in ("id", "index", "key", "image", "image_sha256")]
    lines += [f"{turn['from']:>12}: {turn['value']!r}" for turn in record.conversations]
    vision = seen["vision_positions"]
    lines.append(
        f"{'sequence':<14}{seen['sequence_length']} positions, vision "
        f"{'none' if vision is None else f'{vision[0]}..{vision[1]}'}, {seen['num_queries']} text queries, "
        f"{len(seen['supervised'])} supervised"
    )
    lines += [f"{name:<24}{target['dtype']:<9}{target['shape']}" for name, target in seen["targets"].items()]
    lines += [_position_line(row) for row in seen["supervised"]]
    if seen["focus"]:
        lines += ["focus (rank of each vision token among the top 16)", *focus_grid(seen["focus"], manifest)]
    return "\n".join(lines)


def focus_grid(focus: Sequence[int], manifest: Manifest) -> list[str]:
    """The vision tokens as a grid of text, the rank of the focused ones, a dot for the others."""
    num_tokens = manifest.shapes.vision_tokens
    side = int(num_tokens**0.5)
    rank = {token: str(position + 1) for position, token in enumerate(focus)}
    cells = [f"{rank.get(token, '.'):>3}" for token in range(num_tokens)]
    return ["".join(cells[row * side : (row + 1) * side]) for row in range(side)]


def _position_line(row: dict[str, Any]) -> str:
    if "top" not in row:
        return f"  @{row['position']:<5} label {row['label']}"
    best = ", ".join(f"{entry['id']} {entry['prob']:.3f}" for entry in row["top"])
    return (
        f"  @{row['position']:<5} label {row['label']:<6} p {row['label_prob']:.3f}  tail {row['tail_mass']:.1e}  "
        f"top {best}"
    )


def _distribution(
    logits: NDArray[Any] | TruncatedLogits, number: int
) -> tuple[NDArray[Any], NDArray[np.float64], float]:
    """Token ids, their probabilities and the mass outside them at one supervised position."""
    if isinstance(logits, TruncatedLogits):
        entries = slice(int(logits.offsets[number]), int(logits.offsets[number + 1]))
        probs = np.exp(logits.logprobs[entries].astype(np.float64))
        return logits.ids[entries], probs, float(np.exp(logits.tail_logmass[number]))
    row = logits[number].astype(np.float64)
    exp = np.exp(row - row.max())
    return np.arange(len(row)), exp / exp.sum(), 0.0


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, np.int64 if values.dtype.kind in "iu" else values.dtype)


def _span(positions: NDArray[np.int32]) -> list[int] | None:
    return [int(positions[0]), int(positions[-1])] if len(positions) else None
