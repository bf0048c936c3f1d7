"""Uploads to a bucket, verified from the local file to the object.

Every request has the MD5 of its body, which the service compares (Content-MD5). The sha256 of the bytes sent must be
the committed one. Afterwards the object's size is compared, and its ETag where that is an MD5.
"""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.remote.objects import AbsentError
from alignkd.storage.remote.s3.store import ExistsError, S3Store, UnsupportedError

# bytes per request; S3 takes at most 10,000 parts of at least 5 MiB
PART_BYTES = 8 << 20
MAX_PARTS = 9000
THREADS = 8
# the ETag of no object
_NO_ETAG = f'"{32 * "0"}"'


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A local file on its way to a path of the store."""

    source: Path
    path: str
    num_bytes: int
    sha256: str


def upload_all(store: S3Store, uploads: list[Upload]) -> None:
    """Upload small files at the same time, then each large file in parts.

    Raises:
        CorruptStoreError: the local disk returned other bytes than committed, or the service stored others.
        RemoteError: the service does not answer, or refuses.
    """
    with ThreadPoolExecutor(THREADS, "alignkd-upload") as pool:
        small = [upload for upload in uploads if upload.num_bytes <= PART_BYTES]
        list(pool.map(lambda upload: _put_small(store, upload), small))
        for upload in uploads:
            if upload.num_bytes > PART_BYTES:
                _Multipart(store, upload).run(pool)


def put_if_absent(store: S3Store, path: str, data: bytes) -> bool:
    """Create an object; False if an object of that name with other content exists.

    A repeated request may find what its first attempt has written, so equal content counts as created here.

    Raises:
        StoreError: the service does not support the condition.
    """
    try:
        _put_new(store, path, data)
    except ExistsError:
        return store.get(path, max(len(data), 1 << 24)) == data
    except UnsupportedError:
        raise _unconditional(store) from None
    return True


def check_conditional_puts(store: S3Store, path: str, data: bytes) -> None:
    """Refuse a service that ignores If-None-Match, tried by creating an existing object with its own content.

    Without the condition two writers could commit one shard, or create one store with two manifests.

    Raises:
        StoreError: the service ignores or does not support the condition.
    """
    try:
        _put_new(store, path, data)
    except ExistsError:
        return
    except UnsupportedError:
        pass
    raise _unconditional(store)


def etag(store: S3Store, path: str) -> str:
    """What the service calls the present content of an object.

    Raises:
        AbsentError: there is no such object.
    """
    return str(store.send(path, "head_object", **store.key(path))["ETag"])


def put_if_unchanged(store: S3Store, path: str, data: bytes, tag: str) -> bool:
    """Replace an object whose content still has the ETag `tag`; False if it has another one by now.

    Raises:
        StoreError: the service ignores or does not support the condition.
    """
    # a service that ignores the condition would accept this too, with the content that the object has anyway
    if _put_over(store, path, store.get(path, 1 << 24), _NO_ETAG):
        raise _unconditional(store, "If-Match")
    return _put_over(store, path, data, tag)


def _put_over(store: S3Store, path: str, data: bytes, tag: str) -> bool:
    try:
        store.send(path, "put_object", **store.key(path), Body=data, ContentMD5=_md5(data), IfMatch=tag)
    except ExistsError:
        return False
    except UnsupportedError:
        raise _unconditional(store, "If-Match") from None
    return True


def _put_new(store: S3Store, path: str, data: bytes) -> None:
    store.send(path, "put_object", **store.key(path), Body=data, ContentMD5=_md5(data), IfNoneMatch="*")


def _unconditional(store: S3Store, condition: str = "If-None-Match") -> StoreError:
    return StoreError(
        f"store {store.location}: the service does not honour {condition}, which keeps two writers apart; write the "
        "store to a folder and copy it to the bucket, or use a service that does"
    )


def put(store: S3Store, path: str, data: bytes) -> None:
    """Write a small object, in place of an older one, in one step."""
    store.send(path, "put_object", **store.key(path), Body=data, ContentMD5=_md5(data))


def remote_sha256(store: S3Store, path: str, size: int) -> str:
    """sha256 (hex) of an object, which is fetched."""
    sha256 = hashlib.sha256()
    for start in range(0, size, PART_BYTES):
        sha256.update(store.get_range(path, start, min(size, start + PART_BYTES)).data)
    return sha256.hexdigest()


def _put_small(store: S3Store, upload: Upload) -> None:
    data = upload.source.read_bytes()
    _check_sent(upload, len(data), hashlib.sha256(data).hexdigest())
    answer = store.send(upload.path, "put_object", **store.key(upload.path), Body=data, ContentMD5=_md5(data))
    _check_kept(store, upload, answer, hashlib.md5(data, usedforsecurity=False).hexdigest())


class _Multipart:
    """One file uploaded in parts; no part remains after a failure."""

    def __init__(self, store: S3Store, upload: Upload) -> None:
        self.store, self.upload = store, upload
        self.step = max(PART_BYTES, -(-upload.num_bytes // MAX_PARTS))
        self.arguments = store.key(upload.path)
        self._room = threading.Semaphore(2 * THREADS)  # bounds the parts in memory

    def run(self, pool: ThreadPoolExecutor) -> None:
        self._send("create_multipart_upload", keep="UploadId")
        try:
            sha256 = hashlib.sha256()
            coming = [pool.submit(self._put_part, number, data) for number, data in self._parts(sha256.update)]
            parts = [part.result() for part in coming]
            _check_sent(self.upload, self.upload.source.stat().st_size, sha256.hexdigest())
            answer = self._complete([{"ETag": etag, "PartNumber": n} for n, (etag, _) in enumerate(parts, 1)])
        except BaseException:
            with suppress(StoreError, AbsentError):
                self._send("abort_multipart_upload")
            raise
        digests = b"".join(digest for _, digest in parts)
        whole = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        _check_kept(self.store, self.upload, answer, whole)

    def _parts(self, update: Callable[[bytes], None]) -> Iterator[tuple[int, bytes]]:
        with self.upload.source.open("rb") as file:
            number = 0
            while data := file.read(self.step):
                number += 1
                update(data)
                self._room.acquire()
                yield number, data

    def _put_part(self, number: int, data: bytes) -> tuple[str, bytes]:
        try:
            answer = self._send("upload_part", PartNumber=number, Body=data, ContentMD5=_md5(data))
            return answer["ETag"], hashlib.md5(data, usedforsecurity=False).digest()
        finally:
            self._room.release()

    def _complete(self, parts: list[dict[str, Any]]) -> Any:
        try:
            return self._send("complete_multipart_upload", MultipartUpload={"Parts": parts})
        except AbsentError:
            # the first attempt of a repeated request succeeded; the sizes are compared afterwards
            return {}

    def _send(self, operation: str, keep: str | None = None, **arguments: Any) -> Any:
        answer = self.store.send(self.upload.path, operation, **self.arguments, **arguments)
        if keep is not None:
            self.arguments[keep] = answer[keep]
        return answer


def _check_sent(upload: Upload, num_bytes: int, sha256: str) -> None:
    if (num_bytes, sha256) != (upload.num_bytes, upload.sha256):
        raise CorruptStoreError(
            f"{upload.source}: holds {num_bytes} bytes with sha256 {sha256[:12]} when uploaded, committed were "
            f"{upload.num_bytes} with {upload.sha256[:12]}; check the disk and run again"
        )


def _check_kept(store: S3Store, upload: Upload, answer: Any, md5: str) -> None:
    """Compare the object's size, and its ETag where it is an MD5 (not with server-side encryption by KMS keys)."""
    kept = store.size(upload.path)
    etag = str(answer.get("ETag", "")).strip('"').lower()
    is_md5 = len(etag) == len(md5) and etag[32:] == md5[32:] and answer.get("ServerSideEncryption") != "aws:kms"
    if kept != upload.num_bytes or (is_md5 and etag != md5):
        raise CorruptStoreError(
            f"{store.subject(upload.path)}: the service stored {kept} bytes with ETag {etag[:12]}, sent were "
            f"{upload.num_bytes} with {md5[:12]}; run again"
        )


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
