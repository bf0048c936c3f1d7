"""Notices if the data of a configuration are not those that the store was made from.

Training reads conversations from the store, so an edited data file has no effect; a notice says so. Whole files are
hashed: sizes and times cannot show that the configuration names another copy of the same data.
"""

from collections.abc import Sequence
from pathlib import Path

from alignkd.storage.errors import StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.places import load_manifest
from alignkd.storage.schema.manifest import Manifest
from alignkd.vlm.data.formats.paths import data_files
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSet, Piece
from alignkd.vlm.errors import InputError

MAX_BYTES = 64 << 30
"""Larger data are not compared: that would take minutes at every start, while the other processes of a run wait."""
# name, sha256 now and sha256 in the store
_Difference = tuple[str, str, str]


def changed_data_notice(sets: Sequence[DataSet], store: Path | str) -> str | None:
    """One line that names the first file that differs; None for a merged store, which was made from several stores.

    None too for data of more than `MAX_BYTES`. Other problems with the files or the store give None as well: the code
    that needs them reports them.
    """
    try:
        if sum(file.stat().st_size for data in sets for file in data_files(data.path)) > MAX_BYTES:
            return None
        manifest = load_manifest(store)
        found = _of_sources(sets, manifest) if manifest.all_sources() else _of_one_file(sets[0].path, manifest)
    except (OSError, StoreError, InputError):
        return None
    if found is None:
        return None
    name, now, stored = found
    return (
        f"{name}: sha256 is {now[:12]}, store {store} was made from {stored[:12]}; training uses the conversations in "
        "the store, not those of the file; dump into a new store to use the file"
    )


def _of_one_file(path: Path, manifest: Manifest) -> _Difference | None:
    """The difference of a store that is identified by the bytes of one file; of a compressed one, it has others."""
    stored = manifest.data_fingerprint.get("conversations")
    if stored is None or path.suffix.lower() == ".gz" or not path.is_file():
        return None
    found = file_sha256(path)
    return None if found == stored else (str(path), found, stored)


def _of_sources(sets: Sequence[DataSet], manifest: Manifest) -> _Difference | None:
    """The first file of a list that is not the one that the store lists at its place."""
    for data, source in zip(sets, manifest.all_sources(), strict=False):
        if not source.pieces:
            return None
        opened, start = open_data(data), 0
        for now, stored in zip(opened.pieces, source.pieces, strict=False):
            known = Piece(name=stored.name, num_samples=stored.num_samples, sha256=stored.sha256)
            if now.sha256 != stored.sha256 and not opened.starts_with(known, start):
                return f"{data.path}: {now.name}", now.sha256, stored.sha256
            start += stored.num_samples
    return None
