"""Notices if the data file of a configuration is not the file that the store was made from.

Training reads conversations from the store, so an edited data file has no effect; a notice says so. The whole file is
hashed: sizes and times cannot show that the configuration names another copy of the same data.
"""

from pathlib import Path

from alignkd.storage.errors import StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.places import load_manifest


def changed_data_notice(conversations: Path, store: Path | str) -> str | None:
    """One line if the file exists and differs; None for a merged store, which was made from several files.

    Other problems with the file or the store give None too: the code that needs them reports them.
    """
    try:
        stored = load_manifest(store).data_fingerprint.get("conversations")
        found = file_sha256(conversations) if stored is not None else None
    except (OSError, StoreError):
        return None
    if stored is None or found is None or found == stored:
        return None
    return (
        f"{conversations}: sha256 is {found[:12]}, store {store} was made from {stored[:12]}; training uses the "
        "conversations in the store, not those of the file; dump into a new store to use the file"
    )
