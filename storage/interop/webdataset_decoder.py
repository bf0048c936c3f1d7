"""A decoder for the samples that `webdataset` reads from the tars of a store. Nothing is unpickled.

dataset = webdataset.WebDataset(tars, shardshuffle=False).map(webdataset_decoder("store"))
"""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.disk.next_step import reason
from alignkd.storage.codecs import CODECS, get_codec
from alignkd.storage.codecs.base import Parts, part_column
from alignkd.storage.errors import CorruptStoreError, StoreError
from alignkd.storage.layouts.tar.format import MANIFEST_MEMBER
from alignkd.storage.places import load_manifest
from alignkd.storage.record.images import split_images
from alignkd.storage.schema.columns.shard import IMAGE_TOKENS, describe_targets
from alignkd.storage.schema.manifest import MAX_FILE_BYTES, Manifest, parse_manifest

NPY = ".npy"


class WebDatasetDecoder:
    """Turns one raw sample into arrays; can be pickled, so that data workers can have it."""

    def __init__(self, manifest: Manifest) -> None:
        """Raises StoreError: the store has another layout, so it has no tars."""
        if manifest.backend != "webdataset":
            raise StoreError(f"backend of the store is {manifest.backend!r}, expected 'webdataset'; convert the store")
        found = {name: str(described["codec_id"]) for name, described in describe_targets(manifest).items()}
        # others are kinds of logits, whose arrays are values already
        self._codecs = {name: codec for name, codec in found.items() if codec in CODECS}
        self._rows_of_tokens = manifest.schema_version > 2

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The decoded sample.

        Args:
            sample: as webdataset gives it without `.decode()`: member suffix -> bytes, and `__key__`, `__url__`.

        Returns:
            `NAME.npy` becomes the array `NAME`, targets as float32, and `json` becomes its dict. Others stay as they
            are. A target whose arrays lie with another record (`json["image_record"]`) is absent.

        Raises:
            CorruptStoreError: a member is not what alignkd writes.
        """
        decoded: dict[str, Any] = {}
        for name, value in sample.items():
            try:
                decoded |= _decoded_member(name, value)
            except ValueError as error:
                place = f"{sample.get('__url__', 'tar')}: {sample.get('__key__')}.{name}"
                step = "" if not isinstance(value, bytes) else "; run `alignkd shards verify --deep`"
                raise CorruptStoreError(f"{place}: {error}{step}") from None
        for field, codec in self._codecs.items():
            if field in decoded:
                parts = {part: decoded.pop(part_column(field, part)) for part in get_codec(codec).part_names}
                decoded[field] = self._decoded(field, codec, parts, decoded)
        return decoded

    def _decoded(self, field: str, codec: str, parts: Parts, sample: Mapping[str, Any]) -> NDArray[np.float32]:
        """A target's values; scales that the tokens of an image share are rows of their own."""
        if field != "vision_embeddings" or not self._rows_of_tokens:
            return get_codec(codec).decode(parts)
        images = split_images(codec, parts, sample[IMAGE_TOKENS].tolist())
        return np.concatenate([get_codec(codec).decode(image) for image in images])


def webdataset_decoder(source: Path | str | Manifest) -> WebDatasetDecoder:
    """The decoder for a store's tars.

    Args:
        source: path or URL of the store, path of one of its tars (which holds the manifest too), or the manifest.

    Raises:
        StoreError: there is no store, or the tar is not a shard of one.
    """
    if isinstance(source, Manifest):
        return WebDatasetDecoder(source)
    if str(source).endswith(".tar"):
        return WebDatasetDecoder(_manifest_of_tar(Path(source)))
    return WebDatasetDecoder(load_manifest(source))


def _decoded_member(name: str, value: Any) -> dict[str, Any]:
    if (name.endswith(NPY) or name == "json") and not isinstance(value, bytes):
        raise ValueError("is decoded already; use this decoder in place of `.decode()`")
    if name.endswith(NPY):
        return {name.removesuffix(NPY): np.lib.format.read_array(io.BytesIO(value))}
    return {name: json.loads(value) if name == "json" else value}


def _manifest_of_tar(path: Path) -> Manifest:
    try:
        with tarfile.open(path) as tar:
            member = tar.next()
            content = tar.extractfile(member) if member is not None and member.name == MANIFEST_MEMBER else None
            if content is None:
                raise StoreError(f"{path}: does not begin with {MANIFEST_MEMBER}; give a tar that alignkd wrote")
            document = json.loads(content.read(MAX_FILE_BYTES))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({reason(error)}); check the path") from None
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise CorruptStoreError(f"{path}: {error}; restore it from a copy") from None
    return parse_manifest(document, str(path))
