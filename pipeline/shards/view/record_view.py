"""A stored record as other programs read it: named tensors, stored parts, a JSON summary."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.shards.view.advantage_view import advantage_figures
from alignkd.pipeline.shards.view.attention.grids import square_grid, token_grids, vision_blocks
from alignkd.pipeline.shards.view.layer_view import layer_rows
from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.pipeline.shards.view.sequence_view import sequence_figures
from alignkd.pipeline.shards.view.teacher_view import supervised_rows
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.record.encoded import EncodedArray
from alignkd.storage.record.record import (
    HiddenStates,
    Logits,
    Record,
    SampledLogits,
    Target,
    TruncatedLogits,
    heads_first,
)
from alignkd.storage.schema.manifest import Manifest

# of a record's stored columns, text that is better read elsewhere
_TEXT_COLUMNS = ("keys", "id", "text")


def export_tensors(record: Record, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Every array of a record under its public name; targets that are not stored are left out.

    Attention is [Ht, R, C] here (heads first), called after its pairs: `tqv_attention` is [Ht, Q, P]. Ids, labels,
    positions and indices are int64, as torch indexes with; encoded targets are decoded to float32. P counts the tokens
    of all images, image by image; their files are `image_bytes_0`, `image_bytes_1`, ... Further targets have their
    own names, rows first; those of kind `logits` have theirs before the names of `logits`.
    """
    tensors: dict[str, NDArray[Any] | None] = {
        "input_ids": record.input_ids,
        "labels": record.labels,
        "vision_positions": record.vision_positions,
        "tqv_query_positions": record.tqv_query_positions,
        "supervised_positions": record.supervised_positions,
        f"{manifest.codecs.attention_pairs}_attention": None
        if record.attention is None
        else heads_first(_floats(record.attention)),
        "vision_top_index": record.vision_top_index,
        "vision_top_embeddings": _floats(record.vision_top_embeddings),
        "vision_embeddings": None
        if record.vision_embeddings is None
        else np.concatenate([_floats(image) for image in record.vision_embeddings]),
        **_logit_tensors(record.logits),
    }
    for name, values in record.more.items():
        if isinstance(values, np.ndarray | EncodedArray):
            tensors[name] = _floats(values)
        else:
            tensors |= {f"{name}_{part}": found for part, found in _logit_tensors(values).items()}
    widened = {name: _widened(values) for name, values in tensors.items() if values is not None}
    return widened | {
        f"image_bytes_{number}": np.frombuffer(file, np.uint8) for number, file in enumerate(record.image_bytes)
    }


def stored_parts(record: Record, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Every array of a record as the store holds it, by column: rows first, encoded, bfloat16 as uint16 bits.

    What is stored once per record or image has one row. Records of an older schema have the columns of the present
    one. How to decode: `storage.schema.columns.describe_targets`.
    """
    rows = RecordCodec(manifest.changed()).encode(record, with_image=True)
    return {name: np.ascontiguousarray(values) for name, values in rows.items() if name not in _TEXT_COLUMNS}


def summary(
    record: Record, manifest: Manifest, pieces: Pieces | None = None, lm_head: LmHead | None = None
) -> dict[str, Any]:
    """The record as JSON: identity, conversation, tokens, positions, shapes of the targets, what the teacher says."""
    pieces = pieces or Pieces(None)
    return {
        "key": record.key,
        "id": record.id,
        "index": record.index,
        "images": list(record.images),
        "image_sha256": list(record.image_sha256),
        "num_images": record.num_images,
        "conversations": record.conversations,
        "num_tokens": len(record.input_ids),
        "sequence_length": record.sequence_length,
        "input_ids": record.input_ids.tolist(),
        "input_pieces": [pieces(token) for token in record.input_ids.tolist()],
        "input_supervised": (record.labels != -100).tolist(),
        "vision_positions": _span(record.vision_positions),
        "vision_spans": [_span(positions) for positions in vision_blocks(record)],
        "num_queries": len(record.tqv_query_positions),
        "supervised": supervised_rows(record, manifest, pieces, lm_head),
        "focus": [] if record.vision_top_index is None else record.vision_top_index.tolist(),
        "vision_grid": None if (tokens := manifest.shapes.vision_tokens) is None else list(square_grid(tokens)),
        "vision_grids": [list(grid) for grid in token_grids(record, manifest)],
        "targets": {
            name: {"shape": list(values.shape), "dtype": str(values.dtype)}
            for name, values in export_tensors(record, manifest).items()
        },
        "visual_advantage": advantage_figures(record),
        "sequence_logprob": sequence_figures(record),
        "attention_layers": layer_rows(record, manifest),
        "from_stem": list(manifest.from_stem) if record.has_image else [],
    }


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


def _widened(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, np.int64 if values.dtype.kind in "iu" else values.dtype)


def _span(positions: NDArray[np.int32]) -> list[int] | None:
    return [int(positions[0]), int(positions[-1])] if len(positions) else None
