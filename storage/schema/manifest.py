"""The manifest of a store: the settings that determine its bytes, and the fingerprint of the teacher and the data.

A manifest may come from an untrusted source. Every size in it is bounded, so that opening a store takes bounded
memory.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from alignkd.storage.codecs.settings import NOT_STORED, Codecs, LogitsCodec
from alignkd.storage.errors import StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.sealed_json import canonical, unseal_bytes

__all__ = [
    "FILE_NAME",
    "SCHEMA_VERSION",
    "Codecs",
    "HasManifest",
    "LogitsCodec",
    "Manifest",
    "Shapes",
    "check_fingerprint",
    "check_same_manifest",
    "flatten",
    "parse_manifest",
    "read_manifest",
]

SCHEMA_VERSION: Final = 2
FILE_NAME = "manifest.json"
# fields that may differ between two runs that write the same bytes
VOLATILE = {"created_with"}

MAX_FILE_BYTES = 1 << 20
# the order of all samples is in memory, 8 bytes each
MAX_SAMPLES = 1 << 27
MAX_SHARDS = 1 << 20
MAX_SHARD_SIZE = 1 << 20
# vision embeddings of one image, attention of one token: 256 MiB in float32
MAX_ROW_VALUES = 1 << 26
MAX_ATTACHMENTS = 64

AttachmentName = Annotated[str, StringConstraints(pattern="^[a-z0-9][a-z0-9_.]*$", max_length=100)]
LayoutName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]*$", max_length=40)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shapes(_Model):
    """Sizes of the teacher that determine the shapes of the arrays."""

    num_heads: int = Field(ge=1, le=1 << 12)
    hidden_size: int = Field(ge=1, le=1 << 18)
    vision_tokens: int = Field(ge=1, le=1 << 16, description="P; 144 for MobileVLM V2")
    vocab_size: int = Field(ge=1, le=1 << 22)
    num_tokens: int | None = Field(default=None, ge=1, le=1 << 22)
    attention_layer: int = 0
    vision_top_tokens: int = Field(default=16, ge=1, le=1 << 16, description="tokens of the focus loss (eq. 3)")

    @model_validator(mode="after")
    def _check_row_sizes(self) -> Self:
        for name in ("num_heads", "hidden_size"):
            values = getattr(self, name) * self.vision_tokens
            if values > MAX_ROW_VALUES:
                raise ValueError(
                    f"shapes.{name} is {getattr(self, name)} and shapes.vision_tokens {self.vision_tokens}: "
                    f"{values} values in a stored row, at most {MAX_ROW_VALUES} are allowed"
                )
        return self


class Manifest(_Model):
    """Written once when a store is created; every commit record holds its hash.

    Attributes:
        fingerprint: what determined the teacher's outputs: weights, tokenizer, template, ...
        data_fingerprint: the samples: hash of the conversations file, number of samples, ...
        backend: name of the shards' layout; `layouts/registry.py` has the layouts.
        inputs: `reference` keeps path and sha256 of each image, `embed` the image file's bytes too.
        attachments: store-level files that training needs (tokenizer, lm_head, stem): name -> sha256.
        created_with: versions of software; the only part that may differ when the store is opened for writing again.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    fingerprint: dict[str, str]
    data_fingerprint: dict[str, str]
    shapes: Shapes
    codecs: Codecs
    backend: LayoutName = "zarr"
    inputs: Literal["reference", "embed"] = "reference"
    attachments: dict[AttachmentName, Sha256] = Field(default_factory=dict, max_length=MAX_ATTACHMENTS)
    num_samples: int = Field(ge=1, le=MAX_SAMPLES)
    shard_size: int = Field(ge=1, le=MAX_SHARD_SIZE)
    seed: int = Field(ge=0, lt=2**64)
    created_with: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.codecs.vision_top not in NOT_STORED and self.shapes.vision_top_tokens > self.shapes.vision_tokens:
            raise ValueError(
                f"shapes.vision_top_tokens is {self.shapes.vision_top_tokens}, above shapes.vision_tokens "
                f"{self.shapes.vision_tokens}: lower it or set codecs.vision_top to none"
            )
        if self.num_shards > MAX_SHARDS:
            raise ValueError(
                f"num_samples is {self.num_samples} and shard_size {self.shard_size}: {self.num_shards} shards, at "
                f"most {MAX_SHARDS} are allowed"
            )
        return self

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_size)

    def planned_size(self, shard: int) -> int:
        """Samples that the plan gives to a shard; 0 outside the plan."""
        return max(0, min(self.shard_size, self.num_samples - shard * self.shard_size))

    def manifest_hash(self) -> str:
        """sha256 (hex) of every setting that determines the store's bytes."""
        # None: a setting that the kind of logits does not take. Left out, so that a new setting of one kind does not
        # change the hash of the others.
        document = self.model_dump(exclude=VOLATILE, exclude_none=True)
        return hashlib.sha256(canonical(document)).hexdigest()

    def __repr__(self) -> str:
        shapes, codecs = self.shapes.model_dump(), self.codecs.model_dump(exclude_none=True)
        logits = ", ".join(f"{name}={value}" for name, value in codecs.pop("logits").items())
        lines = [
            f"Manifest(schema {self.schema_version}, {self.backend}, inputs {self.inputs},",
            f"  {self.num_samples} samples in {self.num_shards} shards of {self.shard_size}, seed {self.seed},",
            f"  shapes: {', '.join(f'{name}={value}' for name, value in shapes.items())},",
            f"  codecs: {', '.join(f'{name}={value}' for name, value in codecs.items())}, logits({logits}),",
            f"  attachments: {', '.join(self.attachments) or 'none'},",
            f"  fingerprint of: {', '.join((*self.fingerprint, *self.data_fingerprint))})",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return repr(self)


class HasManifest(Protocol):
    """A store opened for reading or writing."""

    @property
    def path(self) -> Path | str:
        """The store's folder or URL."""

    @property
    def manifest(self) -> Manifest:
        """The store's manifest."""


def read_manifest(files: StoreFiles) -> Manifest:
    """Read the manifest of a store.

    Raises:
        StoreError: it is missing, damaged or too large, or another version of the software wrote it.
    """
    where = files.label(FILE_NAME)
    return parse_manifest(unseal_bytes(files.read(FILE_NAME, MAX_FILE_BYTES), where), where)


def parse_manifest(document: dict[str, Any], where: str) -> Manifest:
    """The manifest in a JSON document.

    Args:
        document: the result of `unseal`.
        where: the file, for messages.

    Raises:
        StoreError: another version of the software wrote it, or a value is out of bounds.
    """
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise StoreError(
            f"{where}: schema_version is {version!r:.40}, this alignkd reads {SCHEMA_VERSION}; open the store with the "
            "alignkd that wrote it, or dump the targets again"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # keys may come from an untrusted source: one line, of bounded length
        place = ".".join(str(part) for part in first["loc"]).encode("unicode_escape").decode()
        raise StoreError(f"{where}: {place:.200}: {first['msg']:.400}; use the alignkd that wrote the store") from None


def check_same_manifest(path: Path | str, found: Manifest, asked: Manifest) -> None:
    """Refuse to resume a store that was made with other settings.

    Raises:
        StoreError: names each differing field with both values.
    """
    stored = flatten(found.model_dump(exclude=VOLATILE))
    wanted = flatten(asked.model_dump(exclude=VOLATILE))
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
            "dump the targets again with the student's settings"
        )


_ABSENT = object()


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, `codecs.attention` for the field `attention` of `codecs`."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
