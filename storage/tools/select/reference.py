"""Mean negative log-probabilities of a reference model for the samples of a store: of another store, or of a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.tools.compare.matching import match_records
from alignkd.storage.tools.select.scan import Progress, mean_nlls, nothing

SUFFIX = ".safetensors"
# tensors of the file: index of each sample in the data set, and its mean negative log-probability in nats
INDEX, MEAN_NLL = "index", "mean_nll"


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceNlls:
    """What a reference contains about the records of a store.

    Attributes:
        mean_nll: float64 [n]; NaN for a record that the reference lacks.
        missing: positions of these records, int64, ascending.
    """

    mean_nll: NDArray[np.float64]
    missing: NDArray[np.int64]


def is_file(reference: Path | str) -> bool:
    """Whether this names a safetensors file, not a store."""
    return isinstance(reference, Path) and reference.suffix == SUFFIX


def reference_nlls(reader: StoreReader, reference: Path | str, progress: Progress = nothing) -> ReferenceNlls:
    """The reference's values in the order of a store's records.

    Records of another store are matched by key; if no key is in both stores, because the models have other templates,
    by the user's ids, which must be unique.

    Args:
        reference: a store of the same data, or a safetensors file with `index` [n] and `mean_nll` [n].
        progress: called with the number of records of the reference done since the last call.

    Raises:
        StoreError: it cannot be read, or has no sample of the store.
    """
    if is_file(reference):
        assert isinstance(reference, Path)
        values = _of_file(reader, reference)
    else:
        values = _of_store(reader, StoreReader(reference), progress)
    missing = np.flatnonzero(np.isnan(values))
    if len(missing) == len(values):
        raise StoreError(
            f"reference {reference}: has none of the {len(values)} samples of store {reader.path}; give a reference of "
            "the same data"
        )
    return ReferenceNlls(mean_nll=values, missing=missing.astype(np.int64))


def _of_store(reader: StoreReader, other: StoreReader, progress: Progress) -> NDArray[np.float64]:
    pairs = match_records(reader, other).pairs
    if not len(pairs):
        pairs = _by_id(reader, other)
    _check_same_labels(reader, other, pairs)
    values = np.full(len(reader), np.nan)
    theirs = np.sort(pairs[:, 1])
    found = np.full(len(other), np.nan)
    found[theirs] = mean_nlls(other, theirs, progress)
    values[pairs[:, 0]] = found[pairs[:, 1]]
    return values


def _check_same_labels(reader: StoreReader, other: StoreReader, pairs: NDArray[np.int64]) -> None:
    """Refuse records of another tokenizer: a mean per label is then another unit."""
    own, theirs = reader.num_supervised[pairs[:, 0]], other.num_supervised[pairs[:, 1]]
    if len(differing := np.flatnonzero(own != theirs)):
        first = int(differing[0])
        raise StoreError(
            f"reference {other.path}: {len(differing)} of {len(pairs)} samples have another number of labels (sample "
            f"{reader.ids[int(pairs[first, 0])]!r}: {own[first]} in store {reader.path}, {theirs[first]} in the "
            "reference), so means per label cannot be compared; take a reference with the teacher's tokenizer"
        )


def _by_id(reader: StoreReader, other: StoreReader) -> NDArray[np.int64]:
    """Pairs of positions with the same id, int64 [n, 2].

    Raises:
        StoreError: an id is not unique, so that it does not name a sample.
    """
    own, theirs = (_unique_ids(one) for one in (reader, other))
    found = [(position, theirs[name]) for name, position in own.items() if name in theirs]
    return np.array(found, np.int64).reshape(-1, 2)


def _unique_ids(reader: StoreReader) -> Mapping[str, int]:
    found = {name: position for position, name in enumerate(reader.ids)}
    if len(found) != len(reader):
        raise StoreError(
            f"store {reader.path}: no key of its samples is in the other store, and its {len(reader)} samples have "
            f"{len(found)} different ids; give the samples unique ids, or a reference of the same template"
        )
    return found


def _of_file(reader: StoreReader, path: Path) -> NDArray[np.float64]:
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
        index, values = tensors[INDEX], tensors[MEAN_NLL].astype(np.float64)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"reference {path}: cannot be read ({error})") from None
    except KeyError as error:
        raise StoreError(
            f"reference {path}: has no tensor {error}; expected {INDEX} [n] (index of each sample in the data set) and "
            f"{MEAN_NLL} [n] (nats per label)"
        ) from None
    except TypeError as error:  # numpy has no such dtype
        raise StoreError(
            f"reference {path}: has a tensor that cannot be read ({error}); write {MEAN_NLL} as float32"
        ) from None
    if infinite := int(np.isinf(values).sum()):
        raise StoreError(
            f"reference {path}: {infinite} of {values.size} values of {MEAN_NLL} are infinite, expected nats; "
            "correct them, or leave out the samples"
        )
    if index.ndim != 1 or index.shape != values.shape or index.dtype.kind not in "iu":
        raise StoreError(
            f"reference {path}: {INDEX} is {index.dtype}{list(index.shape)} and {MEAN_NLL} {list(values.shape)}, "
            "expected integers and floats of one length"
        )
    if len(np.unique(index)) != len(index):
        raise StoreError(f"reference {path}: {INDEX} has an index twice; give each sample once")
    order = np.argsort(index)
    place = np.minimum(np.searchsorted(index[order], reader.dataset_index), max(0, len(index) - 1))
    found = np.full(len(reader), np.nan)
    if len(index):
        has = index[order][place] == reader.dataset_index
        found[has] = values[order][place[has]]
    return found
