"""Small JSON files that prove their own integrity: sorted keys, one fixed spelling, a crc32c inside.

One spelling means that any changed byte is found, also in white space and in fields nobody compares.
"""

import json
from pathlib import Path
from typing import Any

from storage.checksum import crc32c
from storage.errors import CorruptStoreError, StoreError

SEAL = "crc32c"


def canonical(document: dict[str, Any]) -> bytes:
    """The one spelling of a JSON document that is hashed, sealed and compared."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def seal(document: dict[str, Any]) -> bytes:
    """Bytes of a file that holds the document and its checksum."""
    return canonical({**document, SEAL: f"{crc32c(canonical(document)):08x}"})


def unseal(path: Path) -> dict[str, Any]:
    """The document of a sealed file.

    Raises:
        StoreError: the file is absent or unreadable.
        CorruptStoreError: the bytes are not those that were written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; is this the folder of a store?") from None
    try:
        document = json.loads(data)
        found = document.pop(SEAL)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptStoreError(f"{path}: damaged, not a sealed JSON document; restore it from a copy") from None
    expected = f"{crc32c(canonical(document)):08x}"
    if seal(document) != data:
        raise CorruptStoreError(f"{path}: damaged, crc32c is {found}, content gives {expected}; restore it from a copy")
    return dict(document)
