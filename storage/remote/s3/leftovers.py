"""Leftovers of dead writers in a bucket: shard folders that no commit record names, and incomplete uploads.

A listing does not distinguish a dead writer from a slow one, so the caller must not remove young leftovers.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from alignkd.storage.errors import StoreError
from alignkd.storage.files.leftovers import is_dropping, removable_droppings
from alignkd.storage.files.location import parse_location
from alignkd.storage.remote.files import ListedFiles
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.s3.store import S3Store
from alignkd.storage.remote.settings import RemoteSettings, settings_from_environment
from alignkd.storage.schema.commit_record import SHARDS, WRITTEN, load_heads, manifest_and_shards


@dataclass(frozen=True, kw_only=True)
class RemoteLeftover:
    """One removable thing.

    Attributes:
        kind: a `folder` of objects, a multipart `upload` whose parts are stored but no object, or a `foreign` object of
            a desktop, a file server or an editor (`alignkd.storage.files.leftovers`).
        path: relative to the store.
        num_bytes: 0 for an upload, whose parts are not counted.
        age_seconds: time since its youngest object was written, or the upload started, by the service's clock.
        upload_id: id of an upload.
    """

    kind: Literal["folder", "upload", "foreign"]
    path: str
    num_bytes: int
    age_seconds: float
    upload_id: str | None = None


def remote_leftovers(location: str, settings: RemoteSettings | None = None) -> list[RemoteLeftover]:
    """Everything below `shards/` that no commit record names, and droppings anywhere, sorted by path.

    Commit records are read after the listing, so that a shard committed meanwhile does not count as a leftover.

    Raises:
        StoreError: not a store, a store that cannot be listed (http), or a damaged commit record.
        RemoteError: the service does not answer, or refuses.
    """
    objects = _bucket(location, settings)
    folders = _folders(objects)
    uploads = list(_uploads(objects))
    files = ListedFiles(objects, objects.settings)
    manifest, shards = manifest_and_shards(files)
    named = {head.path for head, _ in load_heads(files, shards, manifest.shard_hash)}
    return sorted(
        [left for left in folders if left.path not in named] + uploads + _droppings(objects),
        key=lambda left: (left.path, left.kind),
    )


def remove_remote_leftovers(
    location: str, leftovers: Iterable[RemoteLeftover], settings: RemoteSettings | None = None
) -> None:
    """Remove what `remote_leftovers` found; what no longer exists counts as removed."""
    objects = _bucket(location, settings)
    for left in leftovers:
        if left.upload_id is not None:
            with suppress(AbsentError):
                objects.send(left.path, "abort_multipart_upload", **objects.key(left.path), UploadId=left.upload_id)
        elif left.kind == "foreign":
            objects.delete([left.path])
        else:
            objects.delete([entry.path for entry in objects.listed(left.path)])


def _bucket(location: str, settings: RemoteSettings | None) -> S3Store:
    if (scheme := parse_location(location).scheme) not in ("s3", "http", "https"):
        raise StoreError(f"store {location}: {scheme}:// is only read, so nothing is removed there; clean the original")
    if scheme != "s3":
        raise StoreError(f"store {location}: a web server cannot be listed; use the store's s3:// or local location")
    return S3Store(location, settings or settings_from_environment())


def _folders(objects: S3Store) -> list[RemoteLeftover]:
    now = datetime.now(UTC)
    found: dict[str, RemoteLeftover] = {}
    for entry in objects.listed(SHARDS):
        folder = "/".join(entry.path.split("/")[:2])
        if not WRITTEN.fullmatch(folder.rpartition("/")[2]) or is_dropping(entry.path):
            continue
        before = found.get(folder)
        age = (now - entry.modified).total_seconds()
        found[folder] = RemoteLeftover(
            kind="folder",
            path=folder,
            num_bytes=entry.num_bytes + (before.num_bytes if before else 0),
            age_seconds=min(age, before.age_seconds) if before else age,
        )
    return list(found.values())


def _droppings(objects: S3Store) -> list[RemoteLeftover]:
    """Droppings, one entry per object: a bucket has no folders."""
    now = datetime.now(UTC)
    return [
        RemoteLeftover(
            kind="foreign",
            path=entry.path,
            num_bytes=entry.num_bytes,
            age_seconds=(now - entry.modified).total_seconds(),
        )
        for entry in objects.listed("")
        if removable_droppings([entry.path])
    ]


def _uploads(objects: S3Store) -> Iterable[RemoteLeftover]:
    now = datetime.now(UTC)
    marker: dict[str, Any] = {}
    prefix = objects.key("")["Key"]
    while True:
        answer = objects.send(SHARDS, "list_multipart_uploads", Bucket=objects.bucket, Prefix=prefix, **marker)
        for entry in answer.get("Uploads", []):
            yield RemoteLeftover(
                kind="upload",
                path=entry["Key"][len(prefix) :],
                num_bytes=0,
                age_seconds=(now - entry["Initiated"]).total_seconds(),
                upload_id=entry["UploadId"],
            )
        if not answer.get("IsTruncated"):
            return
        marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}
