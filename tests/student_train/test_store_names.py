"""The name of a store in figures and messages."""

import pytest

from alignkd.student_train.stores import store_name


@pytest.mark.parametrize(
    "path, name",
    [
        ("runs/store/", "store"),
        ("s3://bucket/a/store", "store"),
        ("hf://datasets/org/name", "name"),
        ("hf://datasets/org/name@refs/pr/1", "name"),
        ("hf://datasets/org/name/a/store@feature/x", "store"),
    ],
)
def test_it_is_the_last_part_of_the_path(path: str, name: str) -> None:
    """Of a store on the hub without the revision, so that figures of two revisions have one name."""
    assert store_name(path) == name
