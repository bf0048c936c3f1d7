"""The stores of a training run, and how often their samples are seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.storage.files.hub_location import is_hub_url, parse_hub_location
from alignkd.student_train.errors import TrainError


@dataclass(frozen=True, kw_only=True)
class TrainStore:
    """One store of a run.

    Attributes:
        path: folder or URL.
        name: its name in figures and messages; None: the last part of the path.
        weight: how often each of its samples is seen per pass, above 0.
        share: share of the samples of a pass that come from this store, above 0 and at most 1, in place of `weight`;
            None: by `weight`.
        samples: list of the samples that are trained on, written by `alignkd shards select`; None: all.
    """

    path: Path | str
    name: str | None = None
    weight: float = 1.0
    share: float | None = None
    samples: Path | None = None

    @property
    def shown_name(self) -> str:
        """`name`, or the last part of the path."""
        return store_name(self.path) if self.name is None else self.name


def store_name(path: Path | str) -> str:
    """The last part of a store's path or URL; of one on the hub without the revision."""
    if is_hub_url(path):
        place = parse_hub_location(str(path))
        return (place.prefix or place.repo).rpartition("/")[2]
    return str(path).rstrip("/").rpartition("/")[2] or str(path)


def store_problems(stores: Sequence[TrainStore]) -> list[str]:
    """What is wrong with a list of stores, one line per problem; nothing is opened."""
    problems = [] if stores else ["the list of stores is empty; give at least one"]
    names = [store.shown_name for store in stores]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        problems.append(f"{names.count(twice[0])} stores have the name {twice[0]!r}; give each a `name` of its own")
    paths = [str(store.path).rstrip("/") for store in stores]
    if again := [path for path in dict.fromkeys(paths) if paths.count(path) > 1]:
        problems.append(f"store {again[0]} is listed {paths.count(again[0])} times; list it once, with a weight")
    problems += [
        f"store {store.shown_name}: weight is {store.weight} and share {store.share}; give one of them"
        for store in stores
        if store.share is not None and store.weight != 1.0
    ]
    if not all(store.weight > 0 and 0 < (1.0 if store.share is None else store.share) <= 1 for store in stores):
        problems.append("weight must be above 0, share above 0 and at most 1")
    shares = {store.shown_name: store.share for store in stores}
    if without := [name for name, share in shares.items() if share is None]:
        if len(without) < len(stores):
            problems.append(f"store {without[0]} has no share, but others have; give all stores a share, or none")
    elif stores and abs((total := sum(share or 0.0 for share in shares.values())) - 1) > 1e-6:
        problems.append(f"the shares of the stores sum to {total:.6g}, expected 1")
    return problems


def checked_stores(stores: Path | str | Sequence[TrainStore]) -> tuple[TrainStore, ...]:
    """The stores of a job as a tuple.

    Raises:
        TrainError: one line with every problem of the list.
    """
    if isinstance(stores, Path | str):
        return (TrainStore(path=stores),)
    if problems := store_problems(stores):
        raise TrainError("; ".join(problems))
    return tuple(stores)


def store_weights(stores: Sequence[TrainStore], sizes: Sequence[float]) -> list[float]:
    """How often the samples of each store are seen per pass.

    Shares are turned into weights: a pass is as long as it can be while no store is seen more than once, so the store
    that is scarce for its share is seen once.

    Args:
        sizes: samples of each store, at least 1; times the weights of its sources.
    """
    if stores[0].share is None:
        return [store.weight for store in stores]
    shares = [store.share or 0.0 for store in stores]
    per_pass = min(size / share for size, share in zip(sizes, shares, strict=True))
    # rounded, so that the scarcest has exactly 1
    return [round(share * per_pass / size, 12) for size, share in zip(sizes, shares, strict=True)]
