"""The section `store` as a list: the stores that one training run takes its samples from."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, model_serializer
from pydantic_core import PydanticCustomError

from alignkd.student_train.stores import TrainStore, store_problems
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.settings import COMPLETE, Positive, Settings, UserLocation, UserPath


class ListedStore(Settings):
    """One of several stores that a run is trained from.

    Attributes:
        path: folder or URL of a finished store.
        name: its name in messages and figures; None is the last part of the path.
        weight: how often each of its samples is seen per pass.
        share: share of the samples of a pass that come from this store, in place of `weight`; all stores have one or
            none has, and they sum to 1. The store that is scarce for its share is seen once per pass.
        samples: list of the samples that are trained on, written by `alignkd shards select`; None takes all.
    """

    path: UserLocation
    name: str | None = Field(default=None, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")
    weight: Positive = 1.0
    share: float | None = Field(default=None, gt=0, le=1)
    samples: UserPath | None = None

    def train_store(self) -> TrainStore:
        """The store as a run takes it."""
        return TrainStore(path=self.path, name=self.name, weight=self.weight, share=self.share, samples=self.samples)


class ListedStores(StoreConfig):
    """A section `store` that is a list. The keys of a dump have their defaults and mean nothing.

    Attributes:
        stores: the entries; `path` is that of the first.
    """

    stores: tuple[ListedStore, ...]

    @model_serializer
    def _as_list(self) -> list[dict[str, Any]]:
        return [store.model_dump(mode="json") for store in self.stores]


# section -> the model of an entry, where the section may also be a list
LIST_ENTRIES: dict[type[BaseModel], type[BaseModel]] = {StoreConfig: ListedStore}
_ENTRIES = TypeAdapter(list[ListedStore])


def listed_stores(entries: Sequence[Any]) -> ListedStores:
    """The section of a list.

    Raises:
        ValidationError, PydanticCustomError: of an entry, or about the list.
    """
    stores = _ENTRIES.validate_python(list(entries))
    if problems := store_problems([store.train_store() for store in stores]):
        raise PydanticCustomError(COMPLETE, "{problem}", {"problem": "; ".join(problems)})
    return ListedStores(path=stores[0].path, stores=tuple(stores))
