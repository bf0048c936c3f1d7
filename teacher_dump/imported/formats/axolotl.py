"""Log-probabilities of axolotl's data for knowledge distillation (`integrations/kd`), in JSON or parquet.

Three forms, by their columns:

* `target_token_ids` and `target_logprobs` (or `logprobs`), lists [M, K], with `target_mask` (0: no distribution);
* the same with `input_ids`: what axolotl has prepared, one row of the lists per token;
* `logprobs` (or a column whose name ends with it) of objects `{"token": "token_id:123", "logprob"}`: what its scripts
  collect from vLLM.

The lists cover the end of the sequence. Older versions write the distribution OF a token in the token's own row and
shift in the trainer; newer ones write it in the row before. The columns do not show which.

The values may be renormalised over the K entries and tempered, so the mass of all other tokens is unknown.
"""

from collections.abc import Mapping
from typing import Any

from alignkd.teacher_dump.imported.formats.tokens import token_id
from alignkd.teacher_dump.imported.row import ForeignRow, integers, number, row_of_lists, unusable_row
from alignkd.vlm.errors import SampleError

IDS, MASK, TOKENS = "target_token_ids", "target_mask", "input_ids"
# values of padded entries are -inf or -1e9
LOWEST = -1e8
Distribution = tuple[list[int], list[float]]


def values_column(entry: Mapping[str, Any]) -> str | None:
    """The column with the log-probabilities; None if the entry is not of this format."""
    if IDS in entry:
        return next((name for name in ("target_logprobs", "logprobs") if name in entry), None)
    found = [name for name, value in entry.items() if name.endswith("logprobs") and _is_objects(value)]
    return found[0] if len(found) == 1 else None


def axolotl_row(entry: Mapping[str, Any], where: str) -> ForeignRow:
    """The row of one entry; one that cannot be read has a `problem`. Distributions are those OF their own tokens."""
    sample_id = None if entry.get("id") is None else str(entry["id"])
    try:
        return _row(entry, where, sample_id)
    except SampleError as error:
        return unusable_row(where, sample_id, str(error))


def _row(entry: Mapping[str, Any], where: str, sample_id: str | None) -> ForeignRow:
    column = values_column(entry)
    if column is None or not isinstance(entry[column], list):
        raise SampleError("has no list of log-probabilities")
    found = _of_lists(entry, column) if IDS in entry else [_of_objects(value) for value in entry[column]]
    tokens = None if entry.get(TOKENS) is None else integers(entry[TOKENS], TOKENS)
    if tokens is not None and len(found) > len(tokens):
        raise SampleError(f"has {len(found)} distributions and {len(tokens)} input_ids")
    places = list(range(-len(found), 0))
    return row_of_lists(where, found, id=sample_id, predicts=places, from_end=True, tokens=tokens)


def _of_lists(entry: Mapping[str, Any], column: str) -> list[Distribution | None]:
    ids, values, masks = entry[IDS], entry[column], entry.get(MASK)
    if not isinstance(ids, list) or len(ids) != len(values) or (masks is not None and len(masks) != len(ids)):
        raise SampleError(f"{IDS}, {column} and {MASK} have different lengths")
    masks = [None] * len(ids) if masks is None else masks
    return [_kept(*parts) for parts in zip(ids, values, masks, strict=True)]


def _kept(ids: Any, values: Any, mask: Any) -> Distribution | None:
    if ids is None or values is None:
        return None
    places = range(len(integers(ids, IDS)))
    if not isinstance(values, list) or len(values) != len(ids) or (mask is not None and len(mask) != len(ids)):
        raise SampleError(f"a row of {IDS} has {len(ids)} entries, its log-probabilities or mask have others")
    numbers = [float("-inf") if value is None else number(value, "logprob") for value in values]
    kept = [n for n in places if (mask is None or mask[n]) and numbers[n] > LOWEST]
    return [ids[n] for n in kept], [numbers[n] for n in kept]


def _of_objects(value: Any) -> Distribution | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        raise SampleError(f"a position of the log-probabilities is {value!r:.60}, expected a list of objects")
    ids = [token_id(entry.get("token"), digits=False) for entry in value]
    return ids, [number(entry.get("logprob"), "logprob") for entry in value]


def _is_objects(value: Any) -> bool:
    """Whether a value is a list of lists of objects `{"token", "logprob"}`; null where there is no distribution."""
    if not isinstance(value, list):
        return False
    there = [position for position in value if position]
    return bool(there) and all(
        isinstance(position, list) and isinstance(position[0], Mapping) and {"token", "logprob"} <= position[0].keys()
        for position in there
    )
