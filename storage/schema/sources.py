"""The data of a store as its manifest lists them: data sets, the files of each, and what was added later."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from alignkd.storage.schema.sealed_json import canonical

MAX_SAMPLES = 1 << 27
MAX_SOURCES = 1 << 10
MAX_PIECES = 1 << 14
MAX_ADDITIONS = 1 << 10
MAX_ROLES = 64
MAX_SYSTEM = 1 << 14

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
RoleName = Annotated[str, StringConstraints(max_length=200)]
SourceName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
UtcTime = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredPiece(_Model):
    """Consecutive samples of one file.

    Attributes:
        name: name of the file.
        num_samples: samples from the start of the file.
        sha256: identifies the content of these samples.
        earlier: how many of these samples an earlier part of the store has; None: none of them.
    """

    name: FileName
    num_samples: int = Field(ge=0, le=MAX_SAMPLES)
    sha256: Sha256
    earlier: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)


class StoredSource(_Model):
    """Consecutive samples of one data set.

    Attributes:
        name: name of the data set.
        num_samples: samples that are in the store's plan; fewer than those of the pieces if `share` is set.
        pieces: files in their order; empty where they are not known, as in a merged store.
        share: share of the samples of the files that was taken; None: all.
        roles: names of roles in the data that were given -> `human`, `gpt` or `system`; None: none.
        system: system prompt of samples that had none; None: none was added.
        pairs: samples 2n and 2n + 1 are the chosen and the rejected answer to one question, counted from the first
            sample of the data set; None: they are not.
    """

    name: SourceName
    num_samples: int = Field(ge=0, le=MAX_SAMPLES)
    pieces: tuple[StoredPiece, ...] = Field(default=(), max_length=MAX_PIECES)
    share: float | None = Field(default=None, gt=0, lt=1)
    roles: dict[RoleName, Literal["human", "gpt", "system"]] | None = Field(
        default=None, min_length=1, max_length=MAX_ROLES
    )
    system: Annotated[str, StringConstraints(max_length=MAX_SYSTEM)] | None = None
    pairs: Literal[True] | None = None

    def digest(self) -> str:
        """A short description: number of samples, and a hash of the files."""
        document = self.model_dump(exclude_none=True)
        return f"{self.num_samples} samples, {hashlib.sha256(canonical(document)).hexdigest()[:12]}"


class Addition(_Model):
    """Samples that were added to a store after its manifest was first written.

    Attributes:
        added: UTC time; the only part that may differ between two runs that add the same samples.
        sources: data sets in their order; the first may continue the last one of the store.
        num_samples: number of samples.
        contiguous: as `Manifest.contiguous`, for the shards of the addition.
    """

    added: UtcTime
    sources: tuple[StoredSource, ...] = Field(min_length=1, max_length=MAX_SOURCES)
    num_samples: int = Field(ge=1, le=MAX_SAMPLES)
    contiguous: Literal[True] | None = None

    def content(self) -> dict[str, Any]:
        """What decides the bytes of the addition's shards."""
        return self.model_dump(exclude={"added"}, exclude_none=True)


@dataclass(frozen=True, kw_only=True)
class PlanPart:
    """The shards of the first dump, or of one addition; both have a plan of their own.

    Attributes:
        first_shard, first_sample: number of the first shard, and index of the first sample.
        num_samples: number of samples.
        contiguous: every shard holds consecutive samples.
        hash: what the commit records of the shards carry as `manifest_hash`.
    """

    first_shard: int
    first_sample: int
    num_samples: int
    contiguous: bool
    hash: str


def chained(before: str, addition: Addition) -> str:
    """The hash of an addition to the parts with hash `before`, 64 hex digits."""
    return hashlib.sha256(canonical({"after": before, "addition": addition.content()})).hexdigest()


def joined(sources: Iterable[StoredSource]) -> list[StoredSource]:
    """The sources of all parts of a store in order, where one that continues its predecessor is joined with it."""
    found: list[StoredSource] = []
    for source in sources:
        if found and found[-1].name == source.name:
            found[-1] = _continued(found[-1], source)
        else:
            found.append(source)
    return found


def _continued(before: StoredSource, more: StoredSource) -> StoredSource:
    pieces = list(before.pieces)
    if more.pieces and more.pieces[0].earlier is not None and pieces:
        pieces.pop()  # the longer piece begins with the samples of this one
    added = [piece.model_copy(update={"earlier": None}) for piece in more.pieces]
    return before.model_copy(update={"num_samples": before.num_samples + more.num_samples, "pieces": (*pieces, *added)})


def check_sources(num_samples: int, sources: Sequence[StoredSource] | None, additions: Sequence[Addition]) -> None:
    """Raises ValueError where numbers of samples do not add up, or a data set is listed at two places."""
    for given, total in ((sources, num_samples), *((one.sources, one.num_samples) for one in additions)):
        if given is not None and (found := sum(source.num_samples for source in given)) != total:
            raise ValueError(f"sources have {found} samples, num_samples is {total}")
    listed = joined([*(sources or ()), *(source for one in additions for source in one.sources)])
    names = [source.name for source in listed]
    if len(set(names)) < len(names):
        raise ValueError(f"sources have the names {', '.join(names)[:200]}, expected each once")
