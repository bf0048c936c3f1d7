"""The samples on which layers are compared: a seeded choice among the samples that have an image."""

from collections.abc import Iterator
from dataclasses import dataclass

from alignkd.storage.schema.order import permutation
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads, Prepared, Unusable
from alignkd.vlm.data.data_list import DataList
from alignkd.vlm.errors import InputError

# an epoch of the order of samples that neither dumps nor training use
CHOICE_EPOCH = 2**64 - 2
WINDOW = 32


@dataclass(frozen=True, kw_only=True)
class ChosenSamples:
    """The samples, and what was left out on the way to them.

    Attributes:
        prepared: samples with images; their image arrays are dropped, because two passes need them.
        without_image: number of samples without an image.
        unusable: samples that no target can be computed for.
    """

    prepared: list[Prepared]
    without_image: int
    unusable: list[Unusable]

    @property
    def common_tokens(self) -> int | None:
        """Vision tokens of each of their images; None if the numbers differ."""
        counts = {count for sample in self.prepared for count in sample.example.positions.tokens_of_image}
        return counts.pop() if len(counts) == 1 else None


def choose_samples(samples: DataList, count: int, seed: int, threads: PreparationThreads) -> ChosenSamples:
    """The first `count` usable samples with images of a seeded permutation; fewer if the data have fewer.

    Raises:
        InputError: there is none.
    """
    found: list[Prepared] = []
    unusable: list[Unusable] = []
    without_image = 0
    for window in threads.windows(_windows(samples, seed)):
        unusable += window.unusable
        for sample in window.prepared:
            if len(found) == count:
                break
            without_image += not sample.image_hashes
            found += [sample.without_images()] if sample.image_hashes else []
        threads.budget.give(sum(sample.array_bytes for sample in window.prepared))
        if len(found) == count:
            break
    if not found:
        first = f"; the first ({unusable[0].sample.id!r}): {unusable[0].reason}" if unusable else ""
        raise InputError(
            f"{samples.path}: none of {len(samples)} samples has a usable image ({without_image} have none, "
            f"{len(unusable)} are unusable{first}); attention to vision tokens needs images"
        )
    return ChosenSamples(prepared=found, without_image=without_image, unusable=unusable)


def _windows(samples: DataList, seed: int) -> Iterator[PlannedWindow]:
    order = permutation(len(samples), seed, CHOICE_EPOCH)
    for start in range(0, len(order), WINDOW):
        chosen = [samples[index] for index in order[start : start + WINDOW].tolist()]
        yield PlannedWindow(shard=0, start=start, samples=chosen, is_last=start + WINDOW >= len(order))
