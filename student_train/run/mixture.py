"""How often each sample of a run is seen per pass: weights and shares of stores, and weights of their sources."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import MixedOrder, OrderPart, SampleOrder, StoreReader
from alignkd.storage.tools.select.selection import Selection
from alignkd.student_train.data.domains.order import DomainOrder
from alignkd.student_train.data.samples.held_out import held_out_of
from alignkd.student_train.data.samples.pairs import not_drawn
from alignkd.student_train.data.samples.sources import shown_names, sources_of
from alignkd.student_train.domain_weights_config import DomainWeights
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.portions.domains import measured_portions
from alignkd.student_train.run.portions.lists import left_out, read_lists
from alignkd.student_train.run.portions.portion import Portion
from alignkd.student_train.stores import TrainStore, store_weights

# the samples of an interval of domain weights are in memory together, some 40 bytes each
MOST_DRAWN = 1 << 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """The samples of a run by store and source.

    Attributes:
        stores: the stores of the run.
        portions: store by store; their sources in the order of the store. None is empty.
        lists: the list of samples of each store; None: all samples of it.
        domain_weights: how the weights of the portions follow the student; None: they stay.
    """

    stores: tuple[TrainStore, ...]
    portions: tuple[Portion, ...]
    lists: tuple[Selection | None, ...] = ()
    domain_weights: DomainWeights | None = None

    @classmethod
    def of(
        cls,
        stores: Sequence[TrainStore],
        readers: Sequence[StoreReader],
        source_weights: Mapping[str, float],
        *,
        held_out: NDArray[np.int64] | None = None,
        domain_weights: DomainWeights | None = None,
    ) -> "Mixture":
        """The mixture that the weights of a job give.

        Args:
            stores: the stores.
            readers: the same stores, opened.
            source_weights: weight by name of a source, multiplied with that of its store; 1 for all others.
            held_out: positions of samples that are not trained on.
            domain_weights: as in the attributes; each portion is a domain.

        Raises:
            TrainError: a source with a weight is in no store, or no sample of a store with a list or of one of several
                stores is trained on. With domain weights also: there is one domain, or one without enough samples, or
                weights are given.
            StoreError: a list of samples cannot be read, or was made for another store.
        """
        lists = read_lists(stores)
        not_trained = left_out(lists, stores, readers, held_out)
        portions = [
            Portion(
                name=name,
                store=store.shown_name,
                source=source,
                part=OrderPart(positions=trained, weight=source_weights.get(source, 1.0)),
            )
            for store, (reader, start) in zip(stores, _with_starts(readers), strict=True)
            for name, source, positions in _by_source(store.shown_name, reader, start, alone=len(readers) == 1)
            if len(trained := np.setdiff1d(positions, not_trained))
        ]
        _check_sources(readers, source_weights)
        if domain_weights is not None:
            portions = measured_portions(stores, readers, source_weights, portions, domain_weights)
        sizes = [
            sum(portion.part.weight * len(portion.part.positions) for portion in _of_store(portions, store))
            for store in stores
        ]
        if len(stores) > 1 or any(found is not None for found in lists):
            _check_none_is_empty(stores, readers, sizes)
        weights = {store.shown_name: weight for store, weight in zip(stores, store_weights(stores, sizes), strict=True)}
        weighted = (
            replace(portion, part=replace(portion.part, weight=portion.part.weight * weights[portion.store]))
            for portion in portions
        )
        return cls(stores=tuple(stores), portions=tuple(weighted), lists=lists, domain_weights=domain_weights)

    @property
    def trained(self) -> NDArray[np.int64]:
        """Positions of all samples that are trained on, int64, ascending."""
        return np.sort(np.concatenate([portion.part.positions for portion in self.portions]))

    @property
    def per_pass(self) -> int:
        """Samples of one pass."""
        return sum(portion.part.per_epoch for portion in self.portions)

    @property
    def is_plain(self) -> bool:
        """Whether every sample is seen once per pass."""
        return all(portion.part.weight == 1.0 for portion in self.portions)

    def order(self, seed: int, global_batch: int) -> SampleOrder:
        """The order of the run's samples; with domain weights a `DomainOrder`, whose weights are still to be added.

        Raises:
            TrainError: an interval of domain weights has more samples than fit into memory.
        """
        if self.domain_weights is not None:
            interval = self.domain_weights.interval
            if (drawn := interval * global_batch) > MOST_DRAWN:
                raise TrainError(
                    f"train.domain_weights.interval is {interval} and the global batch {global_batch}: {drawn} samples "
                    f"would be drawn at once, at most {MOST_DRAWN} are; lower interval to at most "
                    f"{max(1, MOST_DRAWN // global_batch)}"
                )
            domains = [portion.part.positions for portion in self.portions]
            return DomainOrder(domains, seed, global_batch, self.domain_weights.interval)
        # samples that are seen once per pass need no part of their own
        once = [portion.part.positions for portion in self.portions if portion.part.weight == 1.0]
        others = [portion.part for portion in self.portions if portion.part.weight != 1.0]
        positions = np.sort(np.concatenate(once)) if once else np.zeros(0, np.int64)
        if not others and np.array_equal(positions, np.arange(len(positions))):
            return SampleOrder(len(positions), seed, global_batch)
        plain = [OrderPart(positions=positions)] if once else []
        return MixedOrder([*plain, *others], seed, global_batch)

    def settings(self, store: str) -> list[float]:
        """Weights of the sources of a store, which decide the order."""
        return [portion.part.weight for portion in self.portions if portion.store == store]

    def rows(self) -> list[dict[str, Any]]:
        """Plain values of every portion; `share` is its share of a pass."""
        return [
            {
                "name": portion.name,
                "samples": len(portion.part.positions),
                "weight": portion.part.weight,
                "per_pass": portion.part.per_epoch,
                "share": portion.part.per_epoch / self.per_pass,
            }
            for portion in self.portions
        ]

    def lines(self) -> Iterator[str]:
        """A line for each list of samples and each portion; none for one source that is seen once per pass."""
        for store, chosen in zip(self.stores, self.lists, strict=True):
            if chosen is not None:
                yield (
                    f"store {store.shown_name}: {len(chosen.kept)} of {chosen.num_samples} samples, chosen by "
                    f"{chosen.by} ({store.samples})"
                )
        if self.domain_weights is not None:
            yield from self._domain_lines(self.domain_weights)
            return
        if len(self.portions) == 1 and self.is_plain:
            return
        for row in self.rows():
            seen = "once" if row["weight"] == 1 else f"{row['weight']:.4g} times"
            yield (
                f"source {row['name']}: {row['samples']} samples, each seen {seen} per pass: "
                f"{row['per_pass']} of {self.per_pass} samples ({row['share']:.1%})"
            )

    def _domain_lines(self, weights: DomainWeights) -> Iterator[str]:
        for portion in self.portions:
            yield (
                f"domain {portion.name}: {len(portion.part.positions)} samples, {len(portion.measured)} more measure "
                f"its weight ({weights.method}, every {weights.interval} steps)"
            )


def mixture_of(job: TrainJob) -> Mixture:
    """The mixture of a job by the indices of its stores; whether stores and student fit is not checked.

    Raises:
        StoreError, TrainError: a store cannot be read, or as `held_out_of` and `Mixture.of`.
    """
    readers = [StoreReader(store.path) for store in job.stores]
    held_out = held_out_of(readers, job.train.validation.share if job.train.validation else None)
    weights = job.train.domain_weights
    unpaired = not_drawn(readers, held_out, in_pairs=job.train.in_pairs)
    return Mixture.of(job.stores, readers, job.source_weights, held_out=unpaired, domain_weights=weights)


def _with_starts(readers: Sequence[StoreReader]) -> Iterator[tuple[StoreReader, int]]:
    """Each store and the position of its first sample in the `TrainingSet`."""
    starts = accumulate((len(reader) for reader in readers), initial=0)
    return zip(readers, starts, strict=False)


def _by_source(
    store: str, reader: StoreReader, start: int, *, alone: bool
) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """Shown name, name in the store and positions of every source that has samples."""
    sources, of_record = sources_of(reader)
    for number, name in enumerate(shown_names(store, sources, alone=alone)):
        if len(own := np.flatnonzero(of_record == number)):
            yield name, sources[number], start + own


def _of_store(portions: Sequence[Portion], store: TrainStore) -> list[Portion]:
    return [portion for portion in portions if portion.store == store.shown_name]


def _check_sources(readers: Sequence[StoreReader], source_weights: Mapping[str, float]) -> None:
    known = dict.fromkeys(name for reader in readers for name in sources_of(reader)[0])
    unknown = [name for name, weight in source_weights.items() if weight != 1.0 and name not in known]
    if unknown:
        raise TrainError(
            f"data entry {unknown[0]!r} has weight {source_weights[unknown[0]]}, but no store has a source of that "
            f"name; their sources are {', '.join(known)}"
        )


def _check_none_is_empty(stores: Sequence[TrainStore], readers: Sequence[StoreReader], sizes: Sequence[float]) -> None:
    """Refuse a store that would have no part in the training, though it has a weight or a share."""
    for store, reader, size in zip(stores, readers, sizes, strict=True):
        if not size:
            held_out = "train.validation.share holds out all of them; lower it, or " if len(reader) else ""
            if store.samples is not None:
                held_out = f"{store.samples} keeps none that is not held out for validation; choose others, or "
            raise TrainError(
                f"store {store.shown_name}: none of {len(reader)} samples is trained on; {held_out}leave it out"
            )
