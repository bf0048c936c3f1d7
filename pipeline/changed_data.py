"""Whether the data file of a configuration is still the one that the store was made from.

Training reads conversations from the store, so an edited data file changes nothing: that is worth a line. The whole
file is hashed, because a size or a time would not notice that the configuration names another file of the same data.
"""

from pathlib import Path

from alignkd.storage.errors import StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.places import load_manifest


def changed_data_notice(conversations: Path, store: Path | str) -> str | None:
    """One line where the file is there and differs; None also for a merged store, which comes from several files.

    What else may be wrong with file or store is found by those who need them.
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
