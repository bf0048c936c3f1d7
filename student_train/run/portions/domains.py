"""Portions as domains whose weights follow the student: some of their samples measure it, and are not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from alignkd.storage import StoreReader
from alignkd.storage.tools.select.label_nll import check_gives_nll
from alignkd.student_train.data.domains.measured import first_words, measured_samples
from alignkd.student_train.data.samples.sources import sources_of
from alignkd.student_train.domain_weights_config import DomainWeights
from alignkd.student_train.errors import TrainError
from alignkd.student_train.run.portions.portion import Portion
from alignkd.student_train.stores import TrainStore


def measured_portions(
    stores: Sequence[TrainStore],
    readers: Sequence[StoreReader],
    source_weights: Mapping[str, float],
    portions: Sequence[Portion],
    weights: DomainWeights,
) -> list[Portion]:
    """The portions without the samples that measure their weights, which each portion then names.

    Samples that are equal to one of those, in whatever domain, are not trained on either.

    Raises:
        TrainError: as `Mixture.of`.
        StoreError: the teacher's log-probability of the labels does not follow from what a store keeps.
    """
    given = [f"store {store.shown_name}" for store in stores if store.weight != 1.0 or store.share is not None]
    given += [f"data entry {name!r}" for name, weight in source_weights.items() if weight != 1.0]
    if given:
        raise TrainError(
            f"train.domain_weights is {weights.method}, which sets the weights of all domains, but {given[0]} has a "
            "weight or share; remove one of them"
        )
    for store, reader in zip(stores, readers, strict=True):
        check_gives_nll(reader.manifest, f"train.domain_weights: store {store.shown_name}")
    keys = first_words(readers)
    has_labels = np.concatenate([reader.num_supervised for reader in readers]) > 0
    measured = [
        measured_samples(keys, has_labels, positions, weights.measured_of(len(positions)))
        for positions in (portion.part.positions for portion in portions)
    ]
    alike = np.isin(keys, keys[np.concatenate([np.zeros(0, np.int64), *measured])])
    found = []
    for portion, own in zip(portions, measured, strict=True):
        positions = portion.part.positions
        left = positions[~alike[positions]]
        if not len(own) or not len(left):
            raise TrainError(
                f"train.domain_weights: domain {portion.name} has {len(positions)} samples, too few to measure its "
                "weight with one and to train on others; leave the domain out, or give it more samples"
            )
        found.append(replace(portion, part=replace(portion.part, positions=left), measured=own))
    _check_domains(stores, readers, found, weights)
    return found


def _check_domains(
    stores: Sequence[TrainStore], readers: Sequence[StoreReader], found: Sequence[Portion], weights: DomainWeights
) -> None:
    """Refuse a single domain, and a data set none of whose samples is trained on."""
    if len(found) < 2:
        name = found[0].name if found else "none"
        raise TrainError(
            f"train.domain_weights is {weights.method}, but the run has one domain ({name}); train from several stores "
            "or data sets, or leave it out"
        )
    known = {(portion.store, portion.source) for portion in found}
    for store, reader in zip(stores, readers, strict=True):
        for source in sources_of(reader)[0]:
            if (store.shown_name, source) not in known:
                raise TrainError(
                    f"train.domain_weights: domain {source} of store {store.shown_name} has no sample that is trained "
                    "on; leave it out, or choose other samples"
                )
