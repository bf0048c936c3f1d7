"""Comparisons of a store's manifest with what a writer or a student expects; a difference is shown with both values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from alignkd.storage.errors import StoreError
from alignkd.storage.schema.manifest import VOLATILE, Manifest

_ABSENT = object()


class HasManifest(Protocol):
    """A store opened for reading or writing."""

    @property
    def path(self) -> Path | str:
        """The store's folder or URL."""

    @property
    def manifest(self) -> Manifest:
        """The store's manifest."""


def check_same_manifest(path: Path | str, found: Manifest, asked: Manifest) -> None:
    """Refuse to resume a store that was made with other settings; additions may differ.

    Raises:
        StoreError: names each differing field with both values.
    """
    if found.schema_version != asked.schema_version:
        raise StoreError(
            f"store {path} has schema {found.schema_version}, which this alignkd reads and does not write; choose "
            "another path, or `alignkd shards convert` the store to a new one"
        )
    stored, wanted = _decisive(found), _decisive(asked)
    differing = [
        f"{name} is {stored.get(name, 'absent')} in the store, {wanted.get(name, 'absent')} asked for"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name, _ABSENT) != wanted.get(name, _ABSENT)
    ]
    if differing:
        raise StoreError(
            f"store {path} was made with other settings: {'; '.join(differing)}; "
            "choose another path or delete the store"
        )


def check_fingerprint(store: HasManifest, expected: Mapping[str, str]) -> None:
    """Refuse a store whose teacher saw other inputs than this student will see.

    Args:
        store: an opened store.
        expected: name -> value of the parts that must agree, e.g. tokenizer, template, image_processor.

    Raises:
        StoreError: names each differing part with both values.
    """
    found = store.manifest.fingerprint
    differing = [
        f"{name} is {found.get(name, 'not recorded')} in the store, {value} in the student"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if differing:
        raise StoreError(
            f"store {store.path} does not fit this student: {'; '.join(differing)}; "
            "give the student the teacher's settings and processor files, or dump again with the student's"
        )


def _decisive(manifest: Manifest) -> dict[str, Any]:
    left_out = {*VOLATILE, "additions"}
    return flatten({name: value for name, value in manifest.settings().items() if name not in left_out})


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, `codecs.attention` for the field `attention` of `codecs`."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
