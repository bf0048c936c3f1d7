"""Store-level files, such as the teacher's tokenizer: written and verified before the manifest that names them."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.files.checksum import file_sha256
from alignkd.storage.files.exclusive import create_exclusively
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.manifest import ATTACHMENT_NAME, Manifest

ATTACHMENTS = "attachments"
_NAME = re.compile(ATTACHMENT_NAME)


def attachment_path(name: str) -> str:
    """Path of an attachment relative to the store.

    Raises:
        StoreError: a name that could leave the folder.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(f"attachment is {name!r}, expected a name of a-z, 0-9, '_', '-' and '.', in a folder at most")
    return f"{ATTACHMENTS}/{name}"


def write_attachments(store: Path, manifest: Manifest, given: Mapping[str, Path | bytes]) -> None:
    """Write every file that the manifest names into the store, durably; undamaged files stay.

    Raises:
        StoreError: a file is neither given nor in the store, or has another sha256 than in the manifest.
    """
    check_named(manifest, given)
    for name, sha256 in manifest.attachments.items():
        target = store / attachment_path(name)
        if target.exists() and file_sha256(target) == sha256:
            continue
        if name not in given:
            raise StoreError(f"{target}: is missing or damaged; give the attachment {name!r} to the writer again")
        source = given[name]
        found = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else file_sha256(source)
        if found != sha256:
            raise StoreError(f"attachment {name}: sha256 is {found[:12]}, expected {sha256[:12]} by the manifest")
        target.unlink(missing_ok=True)  # damaged
        target.parent.mkdir(parents=True, exist_ok=True)
        create_exclusively(target, source, store)
        if (found := file_sha256(target)) != sha256:
            raise CorruptStoreError(f"{target}: read back with sha256 {found[:12]}, written {sha256[:12]}")


def check_named(manifest: Manifest, given: Mapping[str, Path | bytes]) -> None:
    """Refuse an attachment that the manifest does not name.

    Raises:
        StoreError: naming it and those of the manifest.
    """
    if unknown := sorted(given.keys() - manifest.attachments.keys()):
        named = sorted(manifest.attachments) or "none"
        raise StoreError(f"attachment {unknown[0]!r} is given, the manifest names {named}")


def verified_attachment(files: StoreFiles, manifest: Manifest, name: str) -> Path:
    """An attachment of a store, verified.

    Raises:
        StoreError: the store has no attachment of that name.
        CorruptStoreError: it is missing or damaged.
    """
    if name not in (named := manifest.attachments):
        raise StoreError(f"store {files.location} has no attachment {name!r}, it has {sorted(named) or 'none'}")
    return files.fetch(attachment_path(name), named[name])
