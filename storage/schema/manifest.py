"""The manifest of a store: the settings that determine its bytes, and the fingerprint of the teacher and the data.

New stores have schema 3. Stores of schema 2 are read, not written: their manifest has `codecs` in place of `targets`.

A manifest may come from an untrusted source. Every size in it is bounded, so that opening a store takes bounded
memory.
"""

import hashlib
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from alignkd.storage.codecs.settings import NONE, NOT_STORED, Codecs, LogitsCodec
from alignkd.storage.errors import StoreError
from alignkd.storage.files.source import StoreFiles
from alignkd.storage.schema.read_from import ReadFrom
from alignkd.storage.schema.sealed_json import canonical, unseal_bytes
from alignkd.storage.schema.sources import (
    MAX_ADDITIONS,
    MAX_SAMPLES,
    MAX_SOURCES,
    Addition,
    PlanPart,
    Sha256,
    StoredPiece,
    StoredSource,
    chained,
    check_sources,
    joined,
)
from alignkd.storage.schema.targets.attention import check_attention_target
from alignkd.storage.schema.targets.named import MAX_MORE, OWN_FIELDS, NamedTarget, codecs_of, own_targets

__all__ = [
    "FILE_NAME",
    "READ_VERSIONS",
    "SCHEMA_VERSION",
    "Addition",
    "Codecs",
    "LogitsCodec",
    "Manifest",
    "NamedTarget",
    "Shapes",
    "StoredSource",
    "parse_manifest",
    "read_manifest",
]

SCHEMA_VERSION: Final = 3
READ_VERSIONS: Final = (2, 3)
FILE_NAME = "manifest.json"
# fields that may differ between two runs that write the same bytes
VOLATILE = {"created_with", "read_from"}

# what the data consist of, and what was added to them: left out of a manifest that has none of it
OPTIONAL = ("sources", "contiguous", "additions", "read_from")


# a list of 16,000 data files has about 4 MiB
MAX_FILE_BYTES = 8 << 20
# the order of all samples is in memory, 8 bytes each: at most MAX_SAMPLES
MAX_SHARDS = 1 << 20
MAX_SHARD_SIZE = 1 << 20
# vision embeddings of one image, attention of one token: 256 MiB in float32
MAX_ROW_VALUES = 1 << 26
MAX_ATTACHMENTS = 64

# with one folder level at most, as the files of a processor have
ATTACHMENT_NAME = "^[a-z0-9][a-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$"
AttachmentName = Annotated[str, StringConstraints(pattern=ATTACHMENT_NAME, max_length=100)]
LayoutName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]*$", max_length=40)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shapes(_Model):
    """Sizes of the teacher that determine the shapes of the arrays.

    Attributes:
        vision_tokens: tokens of EVERY image; None where images have different numbers of tokens. Attention to vision
            tokens then is one block of columns for all images, and `input_ids` holds one id for each vision token.
        vocab_size: V, columns of the logits.
        num_tokens: entries of the tokenizer, if the logits have more columns.
        attention_layer: the decoder's first layer that has attention.
    """

    num_heads: int = Field(ge=1, le=1 << 12)
    hidden_size: int = Field(ge=1, le=1 << 18)
    vision_tokens: int | None = Field(ge=1, le=1 << 16, description="144 for MobileVLM V2; null: depends on the image")
    vocab_size: int = Field(ge=1, le=1 << 22)
    num_tokens: int | None = Field(default=None, ge=1, le=1 << 22)
    vision_top_tokens: int = Field(default=16, ge=1, le=1 << 16, description="tokens of the focus loss (eq. 3)")
    attention_layer: int = Field(default=0, ge=0, le=1 << 10)

    @model_validator(mode="after")
    def _check_row_sizes(self) -> Self:
        if self.num_tokens is not None and self.num_tokens > self.vocab_size:
            raise ValueError(f"shapes.num_tokens is {self.num_tokens}, above shapes.vocab_size {self.vocab_size}")
        if self.vision_tokens is None:
            return self
        for name in ("num_heads", "hidden_size"):
            values = getattr(self, name) * self.vision_tokens
            if values > MAX_ROW_VALUES:
                raise ValueError(
                    f"shapes.{name} is {getattr(self, name)} and shapes.vision_tokens {self.vision_tokens}: "
                    f"{values} values in a stored row, at most {MAX_ROW_VALUES} are allowed"
                )
        return self


class Manifest(_Model):
    """Written when a store is created; every commit record holds its hash. Only `additions` is ever extended.

    Its file, and `model_dump`, have the list `targets` in place of `codecs` and `more`, and `num_samples` for
    `first_samples`.

    Attributes:
        fingerprint: what determined the teacher's outputs: weights, tokenizer, template, ...
        data_fingerprint: the samples: hash of the conversations file, number of samples, ...
        codecs: how the targets with fields of their own in a `Record` are stored.
        more: further targets, `Record.more` by their names.
        backend: name of the shards' layout; `layouts/registry.py` has the layouts.
        inputs: `reference` keeps path and sha256 of each image, `embed` the image file's bytes too.
        attachments: store-level files that training needs (tokenizer, lm_head, stem): name -> sha256.
        first_samples: samples of the first dump; in the file `num_samples`. `num_samples` here counts additions too.
        sources: data sets of the first dump and their files; None: one file, which `data_fingerprint` identifies.
        contiguous: shards of the first dump hold consecutive samples.
        additions: what was added after the first dump, in order.
        created_with: versions of software. It and `read_from` may differ when the store is opened for writing again.
        read_from: where the dump found images and teacher, paths on its machine; None: not known.
    """

    schema_version: Literal[2, 3] = SCHEMA_VERSION
    fingerprint: dict[str, str]
    data_fingerprint: dict[str, str]
    shapes: Shapes
    codecs: Codecs
    more: tuple[NamedTarget, ...] = Field(default=(), max_length=MAX_MORE)
    backend: LayoutName = "zarr"
    inputs: Literal["reference", "embed"] = "reference"
    attachments: dict[AttachmentName, Sha256] = Field(default_factory=dict, max_length=MAX_ATTACHMENTS)
    first_samples: int = Field(ge=1, le=MAX_SAMPLES, validation_alias="num_samples")
    sources: tuple[StoredSource, ...] | None = Field(default=None, min_length=1, max_length=MAX_SOURCES)
    contiguous: Literal[True] | None = None
    additions: tuple[Addition, ...] | None = Field(default=None, min_length=1, max_length=MAX_ADDITIONS)
    shard_size: int = Field(ge=1, le=MAX_SHARD_SIZE)
    seed: int = Field(ge=0, lt=2**64)
    created_with: dict[str, str] = Field(default_factory=dict)
    read_from: ReadFrom | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_targets(cls, document: Any) -> Any:
        """Turn `targets` of a file into `codecs` and `more`."""
        if not isinstance(document, dict) or "targets" not in document:
            return document
        fields = {name: value for name, value in document.items() if name != "targets"}
        if not isinstance(document["targets"], list | tuple) or len(document["targets"]) > MAX_MORE + len(OWN_FIELDS):
            raise ValueError(f"targets is not a list of at most {MAX_MORE + len(OWN_FIELDS)}")
        targets = [NamedTarget.model_validate(target) for target in document["targets"]]
        own = {target.name: target for target in targets if target.name in OWN_FIELDS}
        further = [target for target in targets if target.name not in OWN_FIELDS]
        return {"codecs": codecs_of(own), **fields, "more": [*further, *fields.get("more", ())]}

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        top, tokens = self.shapes.vision_top_tokens, self.shapes.vision_tokens
        if self.codecs.vision_top not in NOT_STORED and tokens is not None and top > tokens:
            raise ValueError(
                f"shapes.vision_top_tokens is {top}, above shapes.vision_tokens {tokens}: lower it or set "
                "codecs.vision_top to none"
            )
        if self.num_samples > MAX_SAMPLES:
            raise ValueError(f"{self.num_samples} samples with additions, at most {MAX_SAMPLES} are allowed")
        if self.num_shards > MAX_SHARDS:
            raise ValueError(
                f"num_samples is {self.num_samples} and shard_size {self.shard_size}: {self.num_shards} shards, at "
                f"most {MAX_SHARDS} are allowed"
            )
        if files := sorted(
            {name.partition("/")[0] for name in self.attachments if "/" in name} & set(self.attachments)
        ):
            raise ValueError(f"attachments has {files[0]!r} as a file and as a folder")
        if self.schema_version == 2 and (self.more or tokens is None):
            raise ValueError("schema 2 has no further targets and one number of vision tokens for all images")
        if self.schema_version == 2 and any(getattr(self, name) is not None for name in OPTIONAL):
            raise ValueError("schema 2 has no sources and no additions")
        check_sources(self.first_samples, self.sources, self.additions or ())
        if self.codecs.attention == NONE and self.codecs.attention_pairs != "tqv":
            # pairs of no attention have no meaning, and a file has no place for them
            object.__setattr__(self, "codecs", self.codecs.model_copy(update={"attention_pairs": "tqv"}))
        self._check_more()
        return self

    def _check_more(self) -> None:
        names = [target.name for target in self.more]
        if len(set(names)) < len(names):
            raise ValueError(f"targets have the names {', '.join(names)[:200]}, expected each once")
        for target in self.more:
            target.check_further()
            check_attention_target(target)
            values = (target.lead or 1) * (target.width or 1)
            if values > MAX_ROW_VALUES:
                raise ValueError(
                    f"target {target.name!r} has {values} values in a stored row, at most {MAX_ROW_VALUES} are allowed"
                )

    @model_serializer(mode="wrap")
    def _as_file(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        document.pop("more")
        document["num_samples"] = document.pop("first_samples")
        for name in OPTIONAL:
            if document.get(name) is None:
                document.pop(name, None)
            elif name == "read_from":
                assert self.read_from is not None
                document[name] = self.read_from.model_dump(mode=info.mode, exclude_none=True)
            elif name != "contiguous":
                document[name] = [one.model_dump(mode=info.mode, exclude_none=True) for one in getattr(self, name)]
        if self.schema_version == 2:
            for name in ("num_tokens", "attention_layer"):
                document["shapes"].pop(name, None)
            document["codecs"]["logits"].pop("tail", None)
            return document
        document.pop("codecs")
        document["targets"] = [target.model_dump(mode=info.mode) for target in self.targets]
        return document

    @property
    def targets(self) -> tuple[NamedTarget, ...]:
        """Every target of the store, those of `codecs` first."""
        shapes = self.shapes
        own = own_targets(
            self.codecs,
            num_heads=shapes.num_heads,
            hidden_size=shapes.hidden_size,
            attention_layer=shapes.attention_layer,
        )
        return (*own, *self.more)

    @property
    def stored_more(self) -> tuple[NamedTarget, ...]:
        """The further targets that records hold; the teacher's stem gives the others."""
        return tuple(target for target in self.more if target.source == "store")

    @property
    def from_stem(self) -> tuple[str, ...]:
        """Names of all targets that the teacher's stem gives."""
        return (*self.codecs.from_stem, *(target.name for target in self.more if target.source == "stem"))

    @property
    def gives_attention_by_stem(self) -> bool:
        """Whether attention of some layer is not stored because the teacher's stem gives it."""
        return any(target.kind == "attention" and target.source == "stem" for target in self.targets)

    def settings(self) -> dict[str, Any]:
        """The manifest by the names that its fields have here: `codecs`, and the further targets by their names.

        Without `read_from`, which is no setting.
        """
        left_out = ("targets", "read_from")
        document = {name: value for name, value in self.model_dump(mode="json").items() if name not in left_out}
        document |= {"codecs": self.codecs.model_dump(mode="json"), "shapes": self.shapes.model_dump(mode="json")}
        if self.more:
            document["targets"] = {target.name: target.model_dump(mode="json") for target in self.more}
        if self.sources is not None:
            document["sources"] = {source.name: source.digest() for source in self.sources}
        if self.additions is not None:
            document["additions"] = {
                str(number): ", ".join(f"{source.name}: {source.digest()}" for source in addition.sources)
                for number, addition in enumerate(self.additions, 1)
            }
        return document

    def changed(self, **fields: Any) -> "Manifest":
        """A manifest of the present schema with other values of some fields, checked."""
        left_out = ("schema_version", "first_samples")
        found = {name: getattr(self, name) for name in type(self).model_fields if name not in left_out}
        return type(self).model_validate({**found, "num_samples": self.first_samples} | fields)

    @property
    def num_samples(self) -> int:
        """Samples of the whole store, with additions."""
        return self.first_samples + sum(addition.num_samples for addition in self.additions or ())

    @property
    def num_shards(self) -> int:
        """Shards of the whole store, with additions."""
        last = self.parts[-1]
        return last.first_shard + -(-last.num_samples // self.shard_size)

    @cached_property
    def parts(self) -> tuple[PlanPart, ...]:
        """The first dump, then every addition. Numbers of shards and indices of samples run on."""
        found = [
            PlanPart(
                first_shard=0,
                first_sample=0,
                num_samples=self.first_samples,
                contiguous=self.contiguous is True,
                hash=self.manifest_hash(),
            )
        ]
        for addition in self.additions or ():
            before = found[-1]
            found.append(
                PlanPart(
                    first_shard=before.first_shard + -(-before.num_samples // self.shard_size),
                    first_sample=before.first_sample + before.num_samples,
                    num_samples=addition.num_samples,
                    contiguous=addition.contiguous is True,
                    hash=chained(before.hash, addition),
                )
            )
        return tuple(found)

    def part_of(self, shard: int) -> PlanPart:
        """The part of a shard; the last one for a shard outside the plan."""
        return next(part for part in reversed(self.parts) if part.first_shard <= max(shard, 0))

    def planned_size(self, shard: int) -> int:
        """Samples that the plan gives to a shard; 0 outside the plan."""
        part = self.part_of(shard)
        return max(0, min(self.shard_size, part.num_samples - (shard - part.first_shard) * self.shard_size))

    def shard_hash(self, shard: int) -> str:
        """What the commit record of a shard holds as `manifest_hash`, 64 hex digits.

        The hash of an addition depends on all that was there before it, so that its shards belong to one list of data
        only.
        """
        return self.part_of(shard).hash

    @property
    def whole_hash(self) -> str:
        """Identifies the settings and all data, additions too; `manifest_hash()` of a store without additions."""
        return self.parts[-1].hash

    def all_sources(self) -> list[StoredSource]:
        """The data sets of the whole store in order; empty if the manifest lists none."""
        additions = self.additions or ()
        first = self.sources or ([_unlisted(self, additions[0].sources[0].name)] if additions else [])
        return joined([*first, *(one for part in additions for one in part.sources)])

    def shown_index(self, index: int) -> str:
        """The index of a sample for messages, with its data set where there are several."""
        sources = self.all_sources()
        ends = list(accumulate(source.num_samples for source in sources))
        if len(sources) < 2 or not 0 <= index < ends[-1]:
            return f"index {index}"
        return f"index {index}, data set {sources[bisect_right(ends, index)].name}"

    def manifest_hash(self) -> str:
        """sha256 (hex) of every setting that determines the bytes of the first dump."""
        # None: a setting that the kind of logits does not take. Left out, so that a new setting of one kind does not
        # change the hash of the others.
        document = self.model_dump(exclude={*VOLATILE, "additions"}, exclude_none=True)
        return hashlib.sha256(canonical(document)).hexdigest()

    def __repr__(self) -> str:
        shapes, codecs = self.shapes.model_dump(exclude_none=True), self.codecs.model_dump(exclude_none=True)
        logits = ", ".join(f"{name}={value}" for name, value in codecs.pop("logits").items())
        lines = [
            f"Manifest(schema {self.schema_version}, {self.backend}, inputs {self.inputs},",
            f"  {self.num_samples} samples in {self.num_shards} shards of {self.shard_size}, seed {self.seed},",
            *([f"  data sets: {', '.join(source.name for source in found)},"] if (found := self.all_sources()) else []),
            f"  shapes: {', '.join(f'{name}={value}' for name, value in shapes.items())},",
            f"  codecs: {', '.join(f'{name}={value}' for name, value in codecs.items())}, logits({logits}),",
            *([f"  more targets: {', '.join(target.name for target in self.more)},"] if self.more else []),
            f"  attachments: {', '.join(self.attachments) or 'none'},",
            f"  fingerprint of: {', '.join((*self.fingerprint, *self.data_fingerprint))})",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return repr(self)


def _unlisted(manifest: Manifest, name: str) -> StoredSource:
    """The data of a first dump without `sources`; the first addition has the name."""
    num_samples, sha256 = manifest.first_samples, manifest.data_fingerprint.get("conversations", "")
    is_known = len(sha256) == 64 and set(sha256) <= set("0123456789abcdef")
    pieces = (StoredPiece(name=name, num_samples=num_samples, sha256=sha256),) if is_known else ()
    return StoredSource(name=name, num_samples=num_samples, pieces=pieces)


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
    if type(version) is not int or version not in READ_VERSIONS:
        raise StoreError(
            f"{where}: schema_version is {version!r:.40}, this alignkd reads {' and '.join(map(str, READ_VERSIONS))}; "
            "open the store with the alignkd that wrote it, or dump the targets again"
        )
    foreign = {"more", "targets" if version == 2 else "codecs"} & document.keys()
    if foreign:
        raise StoreError(f"{where}: {min(foreign)} is not a field of schema {version}; use the alignkd that wrote it")
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        # keys may come from an untrusted source: one line, of bounded length
        place = ".".join(str(part) for part in first["loc"]).encode("unicode_escape").decode()
        raise StoreError(f"{where}: {place:.200}: {first['msg']:.400}; use the alignkd that wrote the store") from None
    expected = manifest.model_dump()
    if version != 2 and canonical({"targets": document["targets"]}) != canonical({"targets": expected["targets"]}):
        raise StoreError(f"{where}: targets are not spelled as a writer does; use the alignkd that wrote the store")
    return manifest
