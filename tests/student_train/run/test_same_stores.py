"""Ranks that have opened different states of a store do not train."""

from types import SimpleNamespace
from typing import Any

import pytest

from alignkd.student_train.errors import TrainError
from alignkd.student_train.run.checks.agreement import check_same_stores


class Reader:
    """What the check looks at of a `StoreReader`."""

    def __init__(self, path: str, whole_hash: str, records: int) -> None:
        self.path, self.manifest, self.records = path, SimpleNamespace(whole_hash=whole_hash), records

    def __len__(self) -> int:
        return self.records


def ranks(*others: list[tuple[str, int]]) -> Any:
    """The first of several ranks; the others opened these states."""
    return SimpleNamespace(from_all=lambda own: [own, *others])


def test_a_store_that_changed_meanwhile_is_named_with_both_states() -> None:
    readers: Any = [Reader("a", "a" * 64, 4), Reader("hf://datasets/o/n", "b" * 64, 5)]
    same = [("a" * 12, 4), ("b" * 12, 5)]
    check_same_stores(readers, ranks())
    check_same_stores(readers, ranks(same, same))
    with pytest.raises(TrainError, match=r"store hf://datasets/o/n: changed .* b{12} with 5 records and c{12} with 11"):
        check_same_stores(readers, ranks(same, [("a" * 12, 4), ("c" * 12, 11)]))
